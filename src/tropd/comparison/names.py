"""What a plan calls a model, as a folder. No torch here."""

from pathlib import Path

ADDITIONS = {"additions-teacher": "teacher", "additions-student": "student"}
"""The shipped pair of worked additions, by the names that a plan has for it."""


def model_folder(name: str) -> str:
    """The folder of a shipped model (`additions-student`, or one of the proving ground's family); else the name."""
    if name in ADDITIONS:
        from importlib.resources import files

        return str(Path(str(files("tropd.proving_ground") / "models" / ADDITIONS[name])))
    if not Path(name).exists() and name in _family():
        from ..proving_ground.family import model_path

        return str(model_path(name))
    return name


def _family() -> tuple[str, ...]:
    from ..proving_ground.family import MODELS

    return MODELS
