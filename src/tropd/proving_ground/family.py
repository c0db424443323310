"""The family of models, by name, and their folders. They are built by `tools/proving_ground`, in the repository."""

from importlib.resources import files
from pathlib import Path

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
        ValueError: there is no model of this name.
        FileNotFoundError: it is not in this installation.
    """
    if name not in MODELS:
        raise ValueError(f"name is {name!r}; the family has no such model. Choose {', '.join(MODELS)}.")
    folder = family_path() / name
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"The model {name} is not in {folder}. An installed package has {' and '.join(IN_THE_WHEEL)} alone; all "
            "models are in the repository, where `pip install -e .` uses them and "
            "`python -m tools.proving_ground.build --out DIR` trains them again."
        )
    return folder
