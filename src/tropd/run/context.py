"""Prompts against the models' contexts."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..data import PromptData, check_lengths
from ..messages import TOOLS
from ..models.chat_templates import render
from ..models.files import ModelFiles
from ..teacher.context import TeacherContexts, message_ids, text_ids, tools_of
from ..teacher.names import Name, field_of
from ..teacher.per_teacher_settings import args_of
from .sources import rows_of_teacher
from .tools import ENVIRONMENT, NO_TOOLS, RunTools

BATCH = 1000
"""Rows rendered at once."""


@dataclass(frozen=True)
class ContextFit:
    """Prompts that leave no room for a response in a model's context are refused, or dropped.

    Each teacher reads its own rows; `tools` are listed in each prompt as callable, in addition to the data's own.
    """

    student: ModelFiles
    teachers: dict[Name, ModelFiles]
    args: Any
    overlong: str
    tools: RunTools = NO_TOOLS

    def of(self, data: PromptData) -> tuple[PromptData, list[int]]:
        """The data that fit the contexts, and the tokens of each of their prompts as the student sees them."""
        if not isinstance(data.dataset[0]["prompt"], str) and self.student.tokenizer.chat_template is None:
            return data, []  # nothing can be rendered, which `compare_pair` refuses
        lengths = self._student_lengths(data)
        budget = self._budget("student", self.student, lengths)
        data, lengths = self._fit(data, lengths, lengths, budget, "prompt")
        for name, teacher in self.teachers.items():
            data, lengths = self._fit_teacher(name, teacher, data, lengths)
        return data, lengths

    def _fit_teacher(
        self, name: Name, teacher: ModelFiles, data: PromptData, lengths: list[int]
    ) -> tuple[PromptData, list[int]]:
        """What fits a teacher's context, of its own rows."""
        rows = list(rows_of_teacher(data, name))
        if not rows:
            return data, lengths
        args = args_of(self.args, name, self.teachers)
        contexts = TeacherContexts.from_args(args, self.student.tokenizer, teacher.tokenizer)
        same = contexts.as_student and "teacher_prompt" not in data.dataset.column_names
        mine = [lengths[row] for row in rows]
        seen = mine if same else self._seen(contexts, data.dataset.select(rows), mine)
        read: list[int | None] = [None] * len(lengths)
        for row, length in zip(rows, seen, strict=True):
            read[row] = length
        budget = self._budget(field_of(name), teacher, seen)
        return self._fit(data, lengths, read, budget, "prompt" if same else "teacher_prompt")

    def _seen(self, contexts: TeacherContexts, dataset: Any, lengths: list[int]) -> list[int]:
        from jinja2 import TemplateError

        try:
            return [
                len(ids)
                for start, rows in _batches(dataset, self.tools)
                for ids in contexts.of(rows, [[0] * length for length in lengths[start : start + len(rows)]])
            ]
        except TemplateError as error:
            raise ValueError(
                f"teacher_chat_template is {contexts.template!r:.80}, which does not render the prompts ({error}). "
                "Correct it, or use student or teacher."
            ) from error

    def _fit(
        self, data: PromptData, lengths: list[int], read: Sequence[int | None], budget: int, what: str
    ) -> tuple[PromptData, list[int]]:
        """The data without the rows of which more than `budget` tokens are read, and the others' `lengths`."""
        fitting = check_lengths(data, read, budget, overlong=self.overlong, what=what)
        kept = [there is None or there <= budget for there in read]
        return fitting, [length for length, stays in zip(lengths, kept, strict=True) if stays]

    def _student_lengths(self, data: PromptData) -> list[int]:
        kwargs = dict(self.args.chat_template_kwargs or {})
        tokenizer = self.student.tokenizer
        return [
            len(ids)
            for _, rows in _batches(data.dataset, self.tools)
            for ids in tokenize(tokenizer, [row["prompt"] for row in rows], kwargs, [tools_of(row) for row in rows])
        ]

    def _budget(self, role: str, files: ModelFiles, lengths: list[int]) -> int:
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


def tokenize(
    tokenizer: Any, prompts: Sequence[Any], template_kwargs: dict[str, Any], tools: Sequence[Any] | None = None
) -> list[list[int]]:
    """Prompts as the student sees them: text as it stands, messages through the chat template."""
    from jinja2 import TemplateError

    if isinstance(prompts[0], str):
        return text_ids(tokenizer, prompts)
    try:
        if tools is not None and any(tools):
            return [
                message_ids(tokenizer, prompt, given, **template_kwargs)
                for prompt, given in zip(prompts, tools, strict=True)
            ]
        rendered = render(
            tokenizer, list(prompts), add_generation_prompt=True, tokenize=True, return_dict=True, **template_kwargs
        )
    except TemplateError as error:
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path} refuses the prompts: {error}. Their first is "
            f"{prompts[0]!r:.200}; change the messages (system_prompt, chat) or the template."
        ) from error
    return rendered["input_ids"]


def _batches(dataset: Any, tools: RunTools) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Rows with the number of their first; a batch at a time, so that a large data set is never whole in memory."""
    columns = [name for name in ("prompt", "teacher_prompt", TOOLS, ENVIRONMENT) if name in dataset.column_names]
    read = dataset.select_columns(columns)
    for start in range(0, len(dataset), BATCH):
        yield start, tools.told(read.select(range(start, min(start + BATCH, len(dataset)))).to_list())
