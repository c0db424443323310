"""The examples in the docstrings run, and importing the package stays light."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

from tropd import data


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(data.__path__)])
def test_the_examples_of_a_module_run(name):
    assert doctest.testmod(importlib.import_module(f"tropd.data.{name}")).failed == 0


def test_importing_the_package_imports_nothing_heavy():
    heavy = "{'torch', 'transformers', 'datasets', 'pyarrow', 'numpy'}"
    code = f"import sys, tropd.data; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
