"""Prompts against the two models' contexts."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..data import PromptData, check_lengths
from ..preflight.files import ModelFiles
from ..teacher.context import TeacherContexts

BATCH = 1000
"""Rows rendered at once."""


@dataclass(frozen=True)
class ContextFit:
    """Prompts that leave no room for a response in a model's context are refused, or dropped.

    Attributes:
        student: small files of the student.
        teacher: likewise.
        args: the `TrOPDConfig`.
        overlong: `refuse` or `drop`.
    """

    student: ModelFiles
    teacher: ModelFiles
    args: Any
    overlong: str

    def of(self, data: PromptData) -> tuple[PromptData, list[int]]:
        """The data that fit both contexts, and the tokens of each of their prompts as the student sees them."""
        if not isinstance(data.dataset[0]["prompt"], str) and self.student.tokenizer.chat_template is None:
            return data, []  # nothing can be rendered, which `compare_pair` refuses
        lengths = self._student_lengths(data)
        budget = self._budget("student", self.student, lengths)
        data, lengths = self._fit(data, lengths, budget, "prompt")
        contexts = TeacherContexts.configured(self.args, self.student.tokenizer, self.teacher.tokenizer)
        if self._teacher_sees_the_same(data, contexts):
            teacher_budget = self._budget("teacher", self.teacher, lengths)
            return self._fit(data, lengths, teacher_budget, "prompt")
        seen = [
            len(ids)
            for start, rows in _batches(data)
            for ids in contexts.of(rows, [[0] * length for length in lengths[start : start + len(rows)]])
        ]
        fitting, _ = self._fit(data, seen, self._budget("teacher", self.teacher, seen), "teacher_prompt")
        kept = set(fitting.places)
        return fitting, [length for length, place in zip(lengths, data.places, strict=True) if place in kept]

    def _fit(self, data: PromptData, lengths: list[int], budget: int, what: str) -> tuple[PromptData, list[int]]:
        fitting = check_lengths(data, lengths, budget, overlong=self.overlong, what=what)
        return fitting, [length for length in lengths if length <= budget]

    def _student_lengths(self, data: PromptData) -> list[int]:
        kwargs = dict(self.args.chat_template_kwargs or {})
        tokenizer = self.student.tokenizer
        return [
            len(ids)
            for _, rows in _batches(data)
            for ids in tokenize(tokenizer, [row["prompt"] for row in rows], kwargs)
        ]

    @staticmethod
    def _teacher_sees_the_same(data: PromptData, contexts: TeacherContexts) -> bool:
        return contexts.as_student and "teacher_prompt" not in data.dataset.column_names

    def _budget(self, role: str, files: ModelFiles, lengths: list[int]) -> int:
        """Tokens that a prompt may have."""
        longest = self.args.max_completion_length
        if files.context_length is None:
            return sys.maxsize
        if files.context_length <= longest:
            room = files.context_length - max(lengths)
            most = f"Set it to at most {room}" if room > 0 else "Lower it"
            raise ValueError(
                f"max_completion_length is {longest}, but the {role} was made for {files.context_length} positions "
                f"(max_position_embeddings), prompt included. {most}."
            )
        return files.context_length - longest


def tokenize(tokenizer: Any, prompts: Sequence[Any], template_kwargs: dict[str, Any]) -> list[list[int]]:
    """Prompts as the student sees them: text as it stands, messages through the chat template.

    Raises:
        ValueError: a chat template that refuses the messages, in its own words.
    """
    from jinja2 import TemplateError

    if isinstance(prompts[0], str):
        return tokenizer(list(prompts))["input_ids"]
    try:
        rendered = tokenizer.apply_chat_template(
            list(prompts), add_generation_prompt=True, tokenize=True, return_dict=True, **template_kwargs
        )
    except TemplateError as error:
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path} refuses the prompts: {error}. Their first is "
            f"{prompts[0]!r:.200}; change the messages (system_prompt, chat) or the template."
        ) from error
    return rendered["input_ids"]


def _batches(data: PromptData) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Rows with the number of their first; a batch at a time, so that a large data set is never whole in memory."""
    columns = [name for name in ("prompt", "teacher_prompt") if name in data.dataset.column_names]
    read = data.dataset.select_columns(columns)
    for start in range(0, len(data), BATCH):
        yield start, read.select(range(start, min(start + BATCH, len(data)))).to_list()
