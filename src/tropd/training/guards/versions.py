"""The releases of the host that the trainer was built on: it replaces private methods of TRL and of Transformers.

What it relies on in them is listed, and compared with what is installed, in tests/training/trl_contract.py.
"""

import importlib.metadata

from packaging.specifiers import SpecifierSet

BUILT_ON = {"trl": ">=1.16,<1.17", "transformers": ">=5.17,<5.25"}
"""As pyproject.toml has them."""


def check_host() -> None:
    """Refuse another release of the host, in which a replaced method might never be called.

    Raises:
        RuntimeError: with the release that is installed, and what to install.
    """
    for package, wanted in BUILT_ON.items():
        found = importlib.metadata.version(package)
        if not SpecifierSet(wanted).contains(found, prereleases=True):
            raise RuntimeError(
                f"{package} {found} is installed, but tropd replaces private methods of {package}{wanted}, which may "
                f'have moved. Install that (pip install "{package}{wanted}"), or a newer tropd.'
            )
