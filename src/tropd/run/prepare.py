"""From a configuration to everything a run needs but its weights: files looked at, data read, tokenizers compared.

Cheap questions come first, so that a mistake costs seconds. Nothing is printed here; the stages return what they found.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..data import PromptData, check_lengths, load_prompts
from ..model_folder import check_model_folder
from ..preflight.files import ModelFiles, read_model_files
from ..preflight.findings import Finding
from ..preflight.tokens import compare_pair
from .configuration import Configuration

ROWS_COMPARED = 16
"""Rows whose prompts are rendered with both chat templates."""

ROWS_MEASURED = 64
"""Rows whose teacher responses are measured, to compare them with the budget of a rollout."""


@dataclass(frozen=True)
class RunInputs:
    """What a run is made of. Made by `prepare`, read by `build_trainer`, the preflight and the summary.

    Attributes:
        configuration: as written.
        args: the `TrOPDConfig`.
        data: training prompts.
        evaluation: evaluation prompts, or `None`.
        student: tokenizer and configurations of the student, no weights.
        teacher: likewise.
        findings: what was noticed about the pair and the data.
        mean_prompt_tokens: of the training prompts, as the student sees them.
        longest_prompt_tokens: likewise.
    """

    configuration: Configuration
    args: Any
    data: PromptData
    evaluation: PromptData | None
    student: ModelFiles
    teacher: ModelFiles
    findings: list[Finding]
    mean_prompt_tokens: float
    longest_prompt_tokens: int


def prepare(configuration: Configuration, say: Callable[[str], None] = lambda text: None) -> RunInputs:
    """Look at all files, read the data, compare the tokenizers.

    Args:
        configuration: what is wanted.
        say: told what is being done.

    Raises:
        ValueError: the first stage that finds a mistake, with all it found.
    """
    settings = configuration.settings
    check_model_folder(settings.student, "student")
    check_model_folder(settings.teacher, "teacher")
    check_evaluation(configuration)
    say(f"reading {settings.data}")
    data = load_data(configuration, settings.data)
    evaluation = None if settings.eval_data is None else load_data(configuration, settings.eval_data)
    say("loading libraries and tokenizers")
    args = configuration.training_arguments(**hardware_defaults(configuration.trainer))
    student, teacher = read_files(configuration, "student", args), read_files(configuration, "teacher", args)
    fit = ContextFit(student, teacher, args, settings.overlong_prompts)
    data, lengths = fit.of(data)
    if evaluation is not None:
        evaluation, _ = fit.of(evaluation)
    findings = compare(student, teacher, data, args)
    findings += data_findings(data, args)
    mean, longest = sum(lengths) / len(lengths), max(lengths)
    return RunInputs(configuration, args, data, evaluation, student, teacher, findings, mean, longest)


def hardware_defaults(written: dict[str, Any]) -> dict[str, Any]:
    """What TRL must be told on a machine without an accelerator, where the configuration is silent; no bar of tqdm."""
    import torch

    if torch.accelerator.is_available() and not written.get("use_cpu"):
        return {"disable_tqdm": True}
    return {"disable_tqdm": True, "use_cpu": True, "bf16": False}


def load_data(configuration: Configuration, source: str | list[str]) -> PromptData:
    """The prompts of `source`, read as the configuration says."""
    settings = configuration.settings
    return load_prompts(
        source,
        columns=settings.columns or None,
        split=settings.data_split,
        chat=settings.chat,
        system_prompt=settings.system_prompt,
        limit=settings.max_prompts,
    )


def check_evaluation(configuration: Configuration) -> None:
    """Evaluation needs data, and evaluation data needs an evaluation."""
    strategy, data = configuration.trainer.get("eval_strategy", "no"), configuration.settings.eval_data
    evaluates = getattr(strategy, "value", strategy) != "no"
    if data is not None and not evaluates:
        raise ValueError(
            f"eval_data is {data!r}, which has no effect while eval_strategy is 'no'. Set eval_strategy: steps (and "
            "eval_steps), or remove eval_data."
        )
    if evaluates and data is None:
        raise ValueError(
            f"eval_strategy is {strategy!r}, but there is no eval_data. Name a file of prompts, or set it to 'no'."
        )


def read_files(configuration: Configuration, role: str, args: Any) -> ModelFiles:
    """Tokenizer and configurations of one of the models."""
    name = getattr(configuration.settings, role)
    try:
        return read_model_files(name, trust_remote_code=args.trust_remote_code)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{role} is {name!r}, which is neither a model folder here nor to be had from the Hub: {reason}"
        ) from error


def compare(student: ModelFiles, teacher: ModelFiles, data: PromptData, args: Any) -> list[Finding]:
    """What the two models' files say about each other; a pair that cannot work is refused.

    Raises:
        ValueError: every refusal, one a line.
    """
    findings = compare_pair(
        student,
        teacher,
        data.rows(ROWS_COMPARED),
        max_completion_length=args.max_completion_length,
        chat_template_kwargs=args.chat_template_kwargs,
        teacher_chat_template=args.teacher_chat_template,
        teacher_chat_template_kwargs=args.teacher_chat_template_kwargs,
    )
    refusals = [finding.sentence for finding in findings if finding.level == "refusal"]
    if refusals:
        raise ValueError("\n".join(refusals))
    return findings


@dataclass(frozen=True)
class ContextFit:
    """Prompts that leave no room for a response in a model's context are refused, or dropped."""

    student: ModelFiles
    teacher: ModelFiles
    args: Any
    overlong: str

    def of(self, data: PromptData) -> tuple[PromptData, list[int]]:
        """The data that fit, and the tokens of each prompt of theirs."""
        if not isinstance(data.dataset[0]["prompt"], str) and self.student.tokenizer.chat_template is None:
            return data, []  # nothing can be rendered, which `compare` refuses
        budget = self._budget()
        lengths: list[int] = []

        def count(prompts: list[Any]) -> list[list[int]]:
            ids = tokenize(self.student.tokenizer, prompts, self.args.chat_template_kwargs or {})
            lengths.extend(len(row) for row in ids)
            return ids

        fitting = check_lengths(data, count, budget, overlong=self.overlong)
        return fitting, [length for length in lengths if length <= budget]

    def _budget(self) -> int:
        """Tokens that a prompt may have."""
        longest = self.args.max_completion_length
        for role, files in (("student", self.student), ("teacher", self.teacher)):
            if files.context_length is not None and files.context_length <= longest:
                raise ValueError(
                    f"max_completion_length is {longest}, but the {role} was made for {files.context_length} positions "
                    "(max_position_embeddings), prompt included. Lower it."
                )
        known = [files.context_length for files in (self.student, self.teacher) if files.context_length is not None]
        return min(known) - longest if known else sys.maxsize


def tokenize(tokenizer: Any, prompts: Sequence[Any], template_kwargs: dict[str, Any]) -> list[list[int]]:
    """Prompts as the student sees them: text as it stands, messages through the chat template."""
    if not prompts:
        return []
    if isinstance(prompts[0], str):
        return tokenizer(list(prompts))["input_ids"]
    rendered = tokenizer.apply_chat_template(
        list(prompts), add_generation_prompt=True, tokenize=True, return_dict=True, **template_kwargs
    )
    return rendered["input_ids"]


def response_lengths(data: PromptData, tokenizer: Any) -> list[int] | None:
    """Tokens of some of the data's teacher responses; `None` where it has none."""
    rows = data.rows(ROWS_MEASURED)
    given = [row["teacher_response"] for row in rows if row.get("teacher_response") is not None]
    return [_response_length(value, tokenizer) for value in given] or None


def _response_length(value: Any, tokenizer: Any) -> int:
    if isinstance(value, str):
        return len(tokenizer(value, add_special_tokens=False)["input_ids"])
    if isinstance(value[0], int):
        return len(value)
    return sum(_response_length(message["content"], tokenizer) for message in value)


def data_findings(data: PromptData, args: Any) -> list[Finding]:
    """What the method will make of the data's columns."""
    has_responses = "teacher_response" in data.dataset.column_names
    guided = args.resolved_method().guided
    if guided and not has_responses:
        return [
            Finding(
                "note",
                "guidance",
                f"method {args.method!r} starts from teacher responses and the data has none: the teacher will write "
                "them in every step. `tropd generate` writes them once.",
            )
        ]
    if has_responses and not guided:
        sentence = f"the data has a teacher_response column, which method {args.method!r} does not read."
        return [Finding("note", "guidance", sentence)]
    return []
