"""The trainer from what `prepare` found: models, adapter, rewards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..teacher.served.address import is_served
from .adapter import adapter, targets_named
from .prepare import RunInputs


def build_trainer(inputs: RunInputs, callbacks: Sequence[Any] = ()) -> Any:
    """The `TrOPDTrainer`, with both models loaded."""
    from ..training.trainer import TrOPDTrainer

    settings = inputs.configuration.settings
    tokenizers = {name: files.tokenizer for name, files in inputs.teachers.items() if not is_served(files.name)}
    with targets_named(settings):
        trainer = TrOPDTrainer(
            settings.student,
            settings.teacher,
            args=inputs.args,
            train_dataset=inputs.data.dataset,
            eval_dataset=None if inputs.evaluation is None else inputs.evaluation.dataset,
            teacher_processing_class=tokenizers.get(None, tokenizers),
            reward_funcs=inputs.rewards or None,
            tools=inputs.tools.functions or None,
            environment_factory=inputs.tools.environments,
            peft_config=adapter(settings) if settings.use_peft else None,
            callbacks=list(callbacks),
        )
    trainer.data_name = _data_name(settings.data)
    trainer.made_from = {name: getattr(settings, name) for name in ("student", "data", "tools", "environment")}
    return trainer


def _data_name(data: str | Sequence[str]) -> str:
    """Files by their last part, as a card is read on other machines; names on the Hub whole."""
    names = [data] if isinstance(data, str) else data
    return ", ".join(Path(name).name if Path(name).exists() else name for name in names)
