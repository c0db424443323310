"""The card beside a trained model: what learned from what, how, and how far."""

from pathlib import Path
from typing import Any

from ...atomic_files import write_whole
from ...teacher.teachers import Teachers
from ..set_up import model_name

CARD = """\
---
library_name: transformers
tags:
- tropd
- on-policy-distillation
{tag}{base_model}---

# {student}, distilled from {teacher}

Trained by `tropd` with method `{method}` ({summary}): the student wrote its own answers, the teacher scored
every token.

| | |
|---|---|
| student | {student} |
| teacher | {teacher} |
| optimiser steps | {steps} |
| learning rate | {learning_rate:g}, {schedule} |
| rollouts per prompt | {rollouts} |
| longest response | {length} tokens |
| seed | {seed} |

`run.json` has every setting and version, `metrics.jsonl` the metrics, `rollouts/` sampled answers with each token's
region.

Source of `{method}`: {source}. See [Trust Region On-Policy Distillation](https://arxiv.org/abs/2606.01249).
"""


def write_card(trainer: Any) -> None:
    """Write `README.md` into the run's directory, for the state that the trainer is in."""
    args, method, student = trainer.args, trainer.method, model_name(trainer.model) or UNNAMED
    is_local = Path(student).exists() or student == UNNAMED
    text = CARD.format(
        method=method.name,
        tag="" if method.name == "tropd" else f"- {method.name}\n",
        summary=method.summary,
        source=method.source,
        student=student,
        teacher=_teachers(trainer.teachers),
        base_model="" if is_local else f"base_model: {student}\n",
        steps=_steps(args, trainer.state),
        learning_rate=args.learning_rate,
        schedule=getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type),
        rollouts=args.num_generations,
        length=args.max_completion_length,
        seed=args.seed,
    )
    write_whole(Path(args.output_dir) / "README.md", text)


def _steps(args: Any, state: Any) -> str:
    """How many steps the model has taken, of how many where an earlier one was the best."""
    if not args.load_best_model_at_end or state.best_model_checkpoint is None:
        return str(state.global_step)
    return f"{state.best_global_step} (the best of {state.global_step} by {args.metric_for_best_model})"


UNNAMED = "a model without a name"


def _teachers(teachers: Teachers) -> str:
    """The teacher's model, or each model with the name that rows call it by."""
    named = [(name, teacher.name or UNNAMED) for name, teacher in teachers.by_name.items()]
    return ", ".join(model + ("" if name is None else f" ({name})") for name, model in named)
