"""The card beside a trained model: what learned from what, how, how far, and how to load it."""

import re
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model

from ...atomic_files import write_whole
from ...evaluation.card import percent, with_head, with_measured
from ...evaluation.results import title
from ...teacher.teachers import Teachers
from ..set_up import model_name

CARD = """\
# {student}, distilled from {teacher}

Trained by `tropd` with method `{method}` ({summary}): the student wrote its own answers, the teacher scored
every token.

| | |
|---|---|
| student | {student} |
| teacher | {teacher} |
| prompts | {data} |
| optimiser steps | {steps} |
| learning rate | {learning_rate:g}, {schedule} |
| rollouts per prompt | {rollouts} |
| longest response | {length} tokens |
| seed | {seed} |

## Load

{load}
`run.json` has every setting and version, `metrics.jsonl` the metrics, `rollouts/` sampled answers with each token's
region.

Source of `{method}`: {source}. See [Trust Region On-Policy Distillation](https://arxiv.org/abs/2606.01249).
"""

LOAD = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```
"""

LOAD_ADAPTER = """\
This is an adapter. Loaded and merged into its base, it is a model of its own:

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{name}").merge_and_unload()
tokenizer = AutoTokenizer.from_pretrained("{name}")
```
"""

MEASURED = re.compile(r"eval_benchmark/(.+)/accuracy")


def write_card(trainer: Any) -> None:
    """Write `README.md` into the run's directory, for the state that the trainer is in."""
    args, method, student = trainer.args, trainer.method, model_name(trainer.model) or UNNAMED
    is_adapter = is_peft_model(trainer.model)
    text = CARD.format(
        method=method.name,
        summary=method.summary,
        source=method.source,
        student=student,
        teacher=_teachers(trainer.teachers),
        data=_data(trainer),
        steps=_steps(args, trainer.state),
        learning_rate=args.learning_rate,
        schedule=getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type),
        rollouts=args.num_generations,
        length=args.max_completion_length,
        seed=args.seed,
        load=(LOAD_ADAPTER if is_adapter else LOAD).format(name=args.hub_model_id or "path/to/this/folder"),
    )
    head: dict[str, Any] = {"library_name": "peft" if is_adapter else "transformers"}
    if not Path(student).exists() and student != UNNAMED:
        head["base_model"] = student
    head["tags"] = list(dict.fromkeys(["tropd", "on-policy-distillation", method.name]))
    write_whole(Path(args.output_dir) / "README.md", with_benchmarks(with_head(text, head), args, trainer.state))


def with_benchmarks(card: str, args: Any, state: Any) -> str:
    """The card with what `eval_benchmarks` last measured up to the step that the model is of, and before training."""
    measured = [(step, found) for step, found in _scores(state.log_history) if step <= step_of_model(args, state)]
    if not measured:
        return card
    columns = [measured[-1], *(measured[:1] if measured[0][0] == 0 < measured[-1][0] else [])]
    heads = ["benchmark", *(f"after step {step}" if step else "before training" for step, _ in columns)]
    rows = [[title(name), *(percent(found.get(name)) for _, found in columns)] for name in columns[0][1]]
    chosen = ""
    if args.load_best_model_at_end and "benchmark/" in str(args.metric_for_best_model):
        chosen = " The model was chosen by them, so they flatter it."
    table = [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
    said = f"Accuracy in percent on the problems of `eval_benchmarks`.{chosen}"
    section = "\n".join(["## Evaluation while training", "", said, "", *table, ""])
    accuracies = {title(name): accuracy for name, accuracy in columns[0][1].items()}
    return with_measured(card, "eval_benchmarks", section, accuracies, Path(args.output_dir).resolve().name)


def _scores(log: list[dict[str, Any]]) -> list[tuple[int, dict[str, float]]]:
    """The evaluations that asked benchmarks: the step, and each benchmark's accuracy."""
    found = []
    for entry in log:
        named = {name[1]: value for key, value in entry.items() if (name := MEASURED.fullmatch(key))}
        if named:
            found.append((entry["step"], named))
    return found


def step_of_model(args: Any, state: Any) -> int:
    """The step of the model at the end of training."""
    return state.best_global_step if _is_best(args, state) else state.global_step


def _is_best(args: Any, state: Any) -> bool:
    return bool(args.load_best_model_at_end and state.best_model_checkpoint is not None)


def _steps(args: Any, state: Any) -> str:
    """The steps that the model has taken, and of how many if an earlier one was the best."""
    if not _is_best(args, state):
        return str(state.global_step)
    return f"{state.best_global_step} (the best of {state.global_step} by {args.metric_for_best_model})"


UNNAMED = "a model without a name"


def _teachers(teachers: Teachers) -> str:
    """The teacher's model, or each model with the name that rows call it by."""
    named = [(name, teacher.name or UNNAMED) for name, teacher in teachers.by_name.items()]
    return ", ".join(model + ("" if name is None else f" ({name})") for name, model in named)


def _data(trainer: Any) -> str:
    """How many prompts, and what they are called where that is known."""
    data = trainer.train_dataset
    count = f"{len(data):,} rows" if hasattr(data, "__len__") else "a stream"
    return f"{count} of {trainer.data_name}" if trainer.data_name else count
