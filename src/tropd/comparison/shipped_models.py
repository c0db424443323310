"""The folder of a model that a plan names."""

from pathlib import Path

from ..proving_ground.family import MODELS
from ..proving_ground.storeroom import MODELS as OF_STOREROOM
from ..shipped import locate

SHIPPED = (*MODELS, *(f"storeroom-{name}" for name in OF_STOREROOM))


def model_folder(name: str) -> str:
    """The folder of a model of the proving ground, unless a file here has that name; else the name."""
    return locate(f"shipped:{name}") if name in SHIPPED and not Path(name).exists() else name
