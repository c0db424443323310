"""What a plan calls a model, as a folder."""

from pathlib import Path

from ..proving_ground.family import MODELS, model_path


def model_folder(name: str) -> str:
    """The folder of a model of the proving ground's family, unless a file here has that name; else the name."""
    return str(model_path(name)) if name in MODELS and not Path(name).exists() else name
