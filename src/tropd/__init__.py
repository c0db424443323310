"""tropd: trust-region on-policy distillation of language models, hosted on TRL.

`TrOPDTrainer` and `TrOPDConfig` are the everyday names; `tropd.objective` is the mathematics. Heavy imports wait until
a name is touched.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .extras import missing_part

__version__ = "0.2.0"

_HOME_OF = {
    "TrOPDConfig": "training.config",
    "TrOPDTrainer": "training.trainer",
    "METHODS": "objective.methods",
    "Method": "objective.methods",
    "get_method": "objective.methods",
    "register_method": "objective.methods",
    "TerminalReport": "cli.terminal_report",
}
__all__ = [
    "METHODS",
    "Method",
    "TerminalReport",
    "TrOPDConfig",
    "TrOPDTrainer",
    "__version__",
    "get_method",
    "register_method",
]

if TYPE_CHECKING:
    from .cli.terminal_report import TerminalReport
    from .objective.methods import METHODS, Method, get_method, register_method
    from .training.config import TrOPDConfig
    from .training.trainer import TrOPDTrainer


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if (sentence := missing_part(error)) is None:
            raise
        raise ModuleNotFoundError(f"{name}: {sentence}", name=error.name) from error
