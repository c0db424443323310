"""Types of the arguments of the trainer's methods: one table, checked before a method of ours or the host's runs.

The host takes what it is given and fails later, in another library. `model`, `teacher_model` and `args` of the trainer
itself are checked in `arguments.check_arguments`.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from datasets import Dataset, IterableDataset
from peft import PeftConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
from transformers.utils.quantization_config import QuantizationConfigMixin

from .field_types import check_value, kinds_of

Trainer = TypeVar("Trainer", bound=type)
Data: TypeAlias = Dataset | IterableDataset
Tokenizer: TypeAlias = PreTrainedTokenizerBase | ProcessorMixin
Callback: TypeAlias = TrainerCallback | type[TrainerCallback]
Reward: TypeAlias = str | Callable  # type: ignore[type-arg]

ARGUMENTS: dict[str, dict[str, Any]] = {
    "__init__": {
        "train_dataset": Data | None,
        "eval_dataset": Data | dict[str, Data] | None,
        "processing_class": Tokenizer | None,
        "teacher_processing_class": Tokenizer | dict[str, Tokenizer | None] | None,
        "reward_funcs": Reward | list[Reward] | None,
        "reward_processing_classes": PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None,
        "peft_config": PeftConfig | None,
        "quantization_config": QuantizationConfigMixin | None,
        "callbacks": list[Callback] | None,
        "optimizers": tuple[Optimizer | None, LRScheduler | None],
        "tools": list[Callable] | None,  # type: ignore[type-arg]
        "rollout_func": Callable | None,
        "environment_factory": Callable | dict[str, Callable] | None,  # type: ignore[type-arg]
    },
    "train": {
        "resume_from_checkpoint": str | bool | None,
        "trial": type(None),
        "ignore_keys_for_eval": list[str] | None,
    },
    "evaluate": {
        "eval_dataset": str | Data | dict[str, Data] | None,
        "ignore_keys": list[str] | None,
        "metric_key_prefix": str,
    },
    "predict": {"test_dataset": Data, "ignore_keys": list[str] | None, "metric_key_prefix": str},
    "save_model": {"output_dir": str | None, "_internal_call": bool},
    "push_to_hub": {
        "commit_message": str | None,
        "blocking": bool,
        "token": str | None,
        "revision": str | None,
        "private": bool | None,
    },
    "init_hf_repo": {"token": str | None, "private": bool | None},
    "add_callback": {"callback": Callback},
    "pop_callback": {"callback": Callback},
    "remove_callback": {"callback": Callback},
    "expect_endings": {"share": float},
    "log": {"logs": dict[str, Any], "start_time": float | None},
    "log_metrics": {"split": str, "metrics": dict[str, Any]},
    "save_metrics": {"split": str, "metrics": dict[str, Any], "combined": bool},
}
"""Method → argument → its type. Their names are the host's."""


def checks_arguments(trainer: Trainer) -> Trainer:
    """Check the arguments of the methods in `ARGUMENTS` before they run. A class decorator.

    Raises:
        ValueError: from those methods, with the argument, its value, and what it takes.
    """
    for name, kinds in ARGUMENTS.items():
        setattr(trainer, name, _wrap(trainer, name, kinds))
    return trainer


def _wrap(trainer: type, name: str, kinds: dict[str, Any]) -> Callable[..., Any]:
    """The trainer's own method, or the inherited one, after a check of its arguments."""
    own = trainer.__dict__.get(name)
    signature = inspect.signature(getattr(trainer, name))

    @functools.wraps(getattr(trainer, name))
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        for argument, value in _bind(signature, self, args, kwargs).items():
            if argument in kinds:
                _check(argument, value, kinds[argument])
        return own(self, *args, **kwargs) if own else getattr(super(trainer, self), name)(*args, **kwargs)

    return method


def _check(argument: str, value: Any, kind: Any) -> None:
    if isinstance(value, tuple) and tuple not in kinds_of(kind):  # the host adds lists to it
        raise ValueError(f"{argument} is {value!r:.100}, a tuple. Give a list.")
    check_value(argument, value, kind)


def _bind(signature: inspect.Signature, self: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Argument → value, those in `**` included; Python itself reports one that is missing or given twice."""
    given = signature.bind(self, *args, **kwargs).arguments
    behind = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    for name in behind:
        given |= given.pop(name, {})
    return given
