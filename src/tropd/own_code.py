"""Code of the user's own, by its name. Every layer may import it."""

import importlib
import os
import sys
from typing import Any


def import_own(module: str, name: str) -> Any:
    """What a module calls `name`; modules in the working directory are found, too.

    Raises:
        ImportError: there is no such module, or what it imports is not there.
        AttributeError: it has no such name.
        ValueError: the module has no name.

    >>> import_own("math", "pi")
    3.141592653589793
    """
    if os.getcwd() not in sys.path:  # a console script starts without it, `python -m` with it
        sys.path.append(os.getcwd())
    return getattr(importlib.import_module(module), name)
