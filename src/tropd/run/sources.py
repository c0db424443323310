"""The data of a run: training prompts, evaluation prompts, and what the method will make of their columns."""

import os
from collections.abc import Sequence
from typing import Any

from ..data import PromptData, has_splits, load_prompts
from ..preflight.findings import Finding
from ..teacher.names import COLUMN, Name
from .configuration import Configuration
from .settings import RunSettings

ROWS_MEASURED = 64
"""Rows whose teacher responses are measured, to compare them with the budget of a rollout."""


def load_data(settings: RunSettings) -> tuple[PromptData, PromptData | None]:
    """The prompts of training and, all of them, of evaluation, where renamed columns but the prompt may be missing."""
    shared: Any = {"chat": settings.chat, "system_prompt": settings.system_prompt}
    shared |= {"columns": settings.columns or None, "teachers": settings.teacher_names}
    data = load_prompts(settings.data, split=settings.data_split, limit=settings.max_prompts, **shared)
    if settings.eval_data is None:
        return data, None
    split = settings.eval_split if has_splits(settings.eval_data) else "train"
    return data, load_prompts(settings.eval_data, split=split, optional_columns=True, **shared)


def check_evaluation(configuration: Configuration) -> None:
    """Evaluation needs data, and evaluation data needs an evaluation."""
    strategy, data = configuration.trainer.get("eval_strategy", "no"), configuration.settings.eval_data
    evaluates = getattr(strategy, "value", strategy) != "no"
    if data is not None and not evaluates:
        raise ValueError(
            f"eval_data is {data!r}, which has no effect while eval_strategy is 'no'. Set eval_strategy: steps (and "
            "eval_steps), or remove eval_data."
        )
    if evaluates and data is None and not configuration.trainer.get("eval_benchmarks"):
        raise ValueError(
            f"eval_strategy is {strategy!r}, but there is no eval_data. Name a file of prompts, or eval_benchmarks, or "
            "set it to 'no'."
        )


def rows_of_teacher(data: PromptData, name: Name) -> Sequence[int]:
    """The numbers of a teacher's rows; all of them where it is the only one."""
    if name is None:
        return range(len(data))
    return [row for row, value in enumerate(data.dataset[COLUMN]) if value == name]


def first_rows(data: PromptData, name: Name, count: int) -> list[dict[str, Any]]:
    """The first rows of a teacher, at most this many."""
    return data.dataset.select(rows_of_teacher(data, name)[:count]).to_list()


def teacher_findings(data: PromptData, names: Sequence[str] | None) -> list[Finding]:
    """Which rows meet which of several teachers; or what becomes of the column beside a single one."""
    if names is None:
        if COLUMN not in data.dataset.column_names:
            return []
        sentence = (
            f"the data has a column {COLUMN!r}, which is not read: there is one teacher, and it scores every row. For "
            "several, map the column's names to models: `teacher: {name: path, …}`."
        )
        return [Finding("note", "teachers", sentence)]
    counts = {name: len(rows_of_teacher(data, name)) for name in names}
    told = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    idle = [name for name, count in counts.items() if not count]
    if idle:
        sentence = f"no row names {', '.join(idle)}, which would be loaded without use (rows: {told}). Remove it."
        return [Finding("warning", "teachers", sentence)]
    return [Finding("ok", "teachers", f"every row names its teacher: {told}.")]


def response_lengths(data: PromptData, tokenizer: Any, teacher: Name = None) -> list[int] | None:
    """Tokens of some of the data's teacher responses, or of one teacher's rows; `None` where it has none."""
    rows = first_rows(data, teacher, ROWS_MEASURED)
    given = [row["teacher_response"] for row in rows if row.get("teacher_response") is not None]
    return [_response_length(value, tokenizer) for value in given] or None


def _response_length(value: Any, tokenizer: Any) -> int:
    if isinstance(value, str):
        return len(tokenizer(value, add_special_tokens=False)["input_ids"])
    if isinstance(value[0], int):
        return len(value)
    return sum(_response_length(message.get("content") or "", tokenizer) for message in value)


def rows_without_response(data: PromptData) -> list[str]:
    """Places of the rows for which the teacher would have to write."""
    if "teacher_response" not in data.dataset.column_names:
        return list(data.places)
    missing = data.dataset.data.column("teacher_response").is_null().to_pylist()
    if data.dataset._indices is not None:
        missing = [missing[row] for row in data.dataset._indices.column(0).to_pylist()]
    return [place for place, absent in zip(data.places, missing, strict=True) if absent]


def is_sharded(args: Any) -> bool:
    """Will FSDP or DeepSpeed ZeRO-3 shard the student, by the configuration or by accelerate's launcher?"""
    return uses_zero3(args) or bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def uses_zero3(args: Any) -> bool:
    """Is it DeepSpeed ZeRO-3? It shards every model that is loaded."""
    return getattr(args.deepspeed_plugin, "zero_stage", 0) == 3


def guidance_findings(data: PromptData, args: Any, shares_base: bool = False) -> list[Finding]:
    """What the method will make of the teacher responses; with `shares_base` the teacher is the student's own base."""
    if not args.resolved_method().guided:
        if "teacher_response" not in data.dataset.column_names:
            return []
        sentence = f"the data has a teacher_response column, which method {args.method!r} does not read."
        return [Finding("note", "guidance", sentence)]
    missing = rows_without_response(data)
    if not missing:
        return []
    which = "all prompts" if len(missing) == len(data) else f"{len(missing)} of {len(data)} prompts ({missing[0]}, …)"
    if uses_zero3(args) or (is_sharded(args) and (args.shard_teacher or shares_base)):
        raise ValueError(
            f"{which} lack a teacher_response, and a sharded teacher cannot write one while training. Write them with "
            "`tropd generate`, and remove rows without a response; or set guidance_schedule: none."
        )
    sentence = (
        f"method {args.method!r} starts from teacher responses, which {which} lack: the teacher will write them in "
        "every step. `tropd generate` writes them once."
    )
    return [Finding("note", "guidance", sentence)]
