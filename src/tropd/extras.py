"""Parts of the package that are installed on request, and what to type for one. Every layer may import it.

`pip install tropd` brings the mathematics and the commands that need no model; the rest are extras.
"""

import importlib.metadata

_MODULES = {
    "train": "accelerate datasets huggingface_hub peft pyarrow safetensors tokenizers transformers trl",
    "eval": "math_verify antlr4 latex2sympy2_extended if_verifiable langdetect nltk",
    "vllm": "vllm",
    "serve": "starlette uvicorn",
    "gym": "reasoning_gym",
}
EXTRA_OF = {module: extra for extra, modules in _MODULES.items() for module in modules.split()}
"""Top-level module → the extra that brings it. A test holds it to pyproject.toml."""


def missing_part(error: BaseException) -> str | None:
    """What to type for the module that an import did not find; `None` where no extra of ours brings it.

    >>> missing_part(ModuleNotFoundError("No module named 'trl'", name="trl.trainer"))
    'trl is not installed. It comes with: pip install "tropd[train]"'
    """
    module = (getattr(error, "name", None) or "").split(".")[0]
    if not isinstance(error, ModuleNotFoundError) or module not in EXTRA_OF:
        return None
    return f'{module} is not installed. It comes with: pip install "tropd[{EXTRA_OF[module]}]"'


def installed(name: str) -> str | None:
    """The version of an installed distribution, from its metadata; `None` if it is not installed.

    >>> installed("a-distribution-of-nobody") is None
    True
    """
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
