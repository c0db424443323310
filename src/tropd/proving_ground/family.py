"""The family of models, by name, and their folders. They are built by `tools/proving_ground`, in the repository."""

from importlib.resources import files
from pathlib import Path

from ..shipped import locate_field

GENERALIST, STUDENT, PRUNED = "generalist", "student", "pruned"
SPECIALISTS = {domain: f"specialist-{domain}" for domain in ("mathematics", "code", "instructions")}
"""The specialist teacher of each domain."""
MODELS = (GENERALIST, *SPECIALISTS.values(), STUDENT, PRUNED)
IN_THE_WHEEL = (GENERALIST, STUDENT)
"""What an installed package holds; a checkout of the repository has all (docs/decisions/wheel.md)."""


def family_path() -> Path:
    """Folder of the shipped models and of `BUILD.json`, which says how they came about."""
    return Path(str(files("tropd.proving_ground") / "models" / "family"))


def model_path(name: str) -> Path:
    """Folder of a model, for `from_pretrained`.

    Raises:
        ValueError: there is no model of this name, or not in this installation.
    """
    if name not in MODELS:
        raise ValueError(f"name is {name!r}; the family has no such model. Choose {', '.join(MODELS)}.")
    return Path(locate_field("name", f"shipped:{name}"))
