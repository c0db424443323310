"""The folder of a model that a plan names."""

from pathlib import Path

from ..proving_ground.family import MODELS, model_path
from ..proving_ground.storeroom import MODELS as OF_STOREROOM
from ..proving_ground.storeroom import model_path as storeroom_path

STOREROOM = {f"storeroom-{name}": name for name in OF_STOREROOM}


def model_folder(name: str) -> str:
    """The folder of a model of the proving ground, unless a file here has that name; else the name."""
    if Path(name).exists():
        return name
    if name in STOREROOM:
        return str(storeroom_path(STOREROOM[name]))
    return str(model_path(name)) if name in MODELS else name
