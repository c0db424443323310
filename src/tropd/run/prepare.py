"""From a configuration to everything a run needs but its weights: files checked, data read, tokenizers compared.

Cheap questions come first, so that a mistake costs seconds. Nothing is printed here; the stages return what they found.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any

from ..data import PromptData
from ..models.files import ModelFiles, read_model_files
from ..models.folder import check_model_folder, check_weights
from ..preflight.findings import Finding
from ..preflight.tokens import compare_pair
from ..teacher.names import Name, field_of, teacher_phrase
from ..teacher.per_teacher_settings import args_of, check_settings
from ..teacher.served.address import is_served
from ..teacher.served.connect import check_served, connect
from ..teacher.vocabulary import check_vocabularies
from ..training.checkpointing.hub import check_hub
from ..training.guards.arguments import check_enough_prompts, check_no_adapter_beside
from ..training.guards.host_settings import check_host_settings, settle_checkpointing
from .adapter import check_adapter_settings, own_bases
from .configuration import Configuration, at_place
from .context import ContextFit
from .sources import (
    check_evaluation,
    guidance_findings,
    load_data,
    rows_of_teacher,
    teacher_findings,
)
from .tools import NO_TOOLS, RunTools, check_reward_columns, check_rows_of_tools, find_tools, reward_function

ROWS_COMPARED = 16
"""Rows whose prompts are rendered with both chat templates, beside the longest."""


@dataclass(frozen=True)
class RunInputs:
    """What a run is made of. Made by `prepare`, read by `build_trainer`, the preflight and the summary."""

    configuration: Configuration
    args: Any
    data: PromptData
    evaluation: PromptData | None
    rewards: list[Callable]
    tools: RunTools
    student: ModelFiles
    teachers: dict[Name, ModelFiles]
    findings: list[Finding]
    mean_prompt_tokens: float
    longest_prompt_tokens: int


def prepare(configuration: Configuration, say: Callable[[str], None] = lambda text: None) -> RunInputs:
    """Look at all files, read the data, compare the tokenizers.

    Raises:
        ValueError: the first stage that finds a mistake, with all it found.
    """
    settings = configuration.settings
    models = {"student": settings.student} | {field_of(name): model for name, model in settings.teachers.items()}
    for role, name in models.items():
        if role == "student" or not is_served(name):
            check_model_folder(name, role)
            check_no_adapter_beside(role, name)
    check_evaluation(configuration)
    say("loading libraries and tokenizers")
    for role, name in models.items():
        if is_served(name):
            continue
        check_weights(name, role, configuration.trainer.get("trust_remote_code", False))
    args = arguments_of(configuration)
    check_settings(args, settings.teachers)
    check_served(args.resolved_method(), args, settings.teachers)
    check_hub(args)
    check_benchmarks(args, configuration)
    rewards = [reward_function(name) for name in settings.reward_funcs]
    tools = find_tools(settings.tools, settings.environment)
    student = read_model_files(settings.student, trust_remote_code=args.trust_remote_code, role="student")
    teachers = {name: read_teacher(name, settings.teachers, args, student) for name in settings.teachers}
    kept_in_memory = _settled_checkpointing(student, args, configuration)
    for teacher_name, teacher in teachers.items():
        check_vocabulary(student, teacher_name, teacher)
    say(f"reading {settings.data}")
    data, evaluation = load_data(settings)
    check_rows_of_tools(tools, data)
    fit = ContextFit(student, teachers, args, settings.overlong_prompts, tools)
    data, lengths = fit.of(data)
    if evaluation is not None:
        evaluation, _ = fit.of(evaluation)
    longest_row = lengths.index(max(lengths)) if lengths else 0
    findings = compare(student, teachers, data, longest_row, args, tools) + kept_in_memory
    check_enough_prompts(len(data), args)
    check_reward_columns(rewards, data.dataset.column_names)
    findings += teacher_findings(data, settings.teacher_names)
    findings += guidance_findings(data, args, bool(own_bases(settings, args)))
    mean, longest = sum(lengths) / len(lengths), max(lengths)
    read = (data, evaluation, rewards, tools)
    return RunInputs(configuration, args, *read, student, teachers, findings, mean, longest)


def check_benchmarks(args: Any, configuration: Configuration) -> None:
    """Refuse benchmarks that are not found or cannot be graded here, before weights are loaded."""
    from ..training.benchmarks import load_asked

    try:
        load_asked(args)
    except ValueError as error:
        raise at_place(
            error, configuration.places, otherwise=configuration.places.get("eval_benchmarks", "")
        ) from error


def read_teacher(name: Name, teachers: Mapping[Name, str], args: Any, student: ModelFiles) -> ModelFiles:
    """A teacher's small files, or what its server reports instead."""
    model = teachers[name]
    if not is_served(model):
        return read_model_files(model, trust_remote_code=args.trust_remote_code, role=field_of(name))
    given = {"student_tokenizer": student.tokenizer, "student_rows": student.head_rows}
    return connect(model, args_of(args, name, teachers), name=name, **given).files(model)


def arguments_of(configuration: Configuration) -> Any:
    """The `TrOPDConfig`, after its fields and the adapter's have been checked as they were written."""
    from ..training.config import TrOPDConfig

    defaults = {field.name: field.default for field in fields(TrOPDConfig)}
    try:
        check_host_settings(SimpleNamespace(**defaults | configuration.trainer))
        check_adapter_settings(configuration.settings)
        return configuration.training_arguments(**hardware_defaults(configuration.trainer))
    except ValueError as error:
        raise at_place(error, configuration.places) from error


def _settled_checkpointing(student: ModelFiles, args: Any, configuration: Configuration) -> list[Finding]:
    """What is said of a student whose architecture has no activation checkpointing; of other code it is found later."""
    from transformers import AutoModelForCausalLM

    kind = AutoModelForCausalLM._model_mapping.get(type(student.config), None)
    note = settle_checkpointing(args, kind, configuration.trainer) if isinstance(kind, type) else None
    return [] if note is None else [Finding("note", "activations", note)]


def hardware_defaults(written: dict[str, Any]) -> dict[str, Any]:
    """Fields that TRL needs on a machine without an accelerator, unless the configuration sets them; no tqdm bar."""
    import torch

    if torch.accelerator.is_available() and not written.get("use_cpu"):
        return {"disable_tqdm": True}
    return {"disable_tqdm": True, "use_cpu": True, "bf16": False}


def check_vocabulary(student: ModelFiles, name: Name, teacher: ModelFiles) -> None:
    """Refuse a teacher that does not read the student's token ids, by its name where it has one."""
    try:
        check_vocabularies(student.tokenizer, teacher.tokenizer, teacher.head_rows)
    except ValueError as error:
        raise error if name is None else ValueError(f"{teacher_phrase(name)} cannot be used: {error}") from error


def compare(
    student: ModelFiles,
    teachers: dict[Name, ModelFiles],
    data: PromptData,
    longest_row: int,
    args: Any,
    tools: RunTools = NO_TOOLS,
) -> list[Finding]:
    """What the models' files say about each other, each teacher on its own rows; a pair that cannot work is refused."""
    found = {
        name: _compared(student, teacher, tools.told(_rows_for(data, name, longest_row)), args_of(args, name, teachers))
        for name, teacher in teachers.items()
    }
    shared = [finding for finding in next(iter(found.values())) if all(finding in each for each in found.values())]
    findings = shared + [
        replace(finding, subject=f"{finding.subject} ({name})")
        for name, each in found.items()
        for finding in each
        if finding not in shared
    ]
    refusals = [
        finding.sentence if finding in shared else f"{finding.subject}: {finding.sentence}"
        for finding in findings
        if finding.level == "refusal"
    ]
    if refusals:
        raise ValueError("\n".join(refusals))
    return findings


def _rows_for(data: PromptData, name: Name, longest_row: int) -> list[dict[str, Any]]:
    """Rows of one teacher, the longest of all among them where it is its own."""
    rows = rows_of_teacher(data, name)
    first = list(rows[:ROWS_COMPARED])
    wanted = [row for row in (longest_row,) if row in rows and row not in first] + first
    return [data.dataset[row] for row in wanted]


def _compared(student: ModelFiles, teacher: ModelFiles, rows: list[dict[str, Any]], args: Any) -> list[Finding]:
    return compare_pair(
        student,
        teacher,
        rows,
        max_completion_length=args.max_completion_length,
        chat_template_kwargs=args.chat_template_kwargs,
        teacher_chat_template=args.teacher_chat_template,
        teacher_chat_template_kwargs=args.teacher_chat_template_kwargs,
        ending=args.ending,
        ending_ids=args.ending_ids,
    )
