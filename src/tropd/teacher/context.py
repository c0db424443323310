"""What the teacher sees before a response: the student's own prompt unless told otherwise."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TeacherContexts:
    """Renders each row's prompt for the teacher. The response tokens are shared with the student; the contexts are not.

    Attributes:
        student_tokenizer: renders where `template` is `student`, or where the teacher has no tokenizer.
        teacher_tokenizer: the teacher's own, or `None`.
        template: `student`, `teacher`, or a Jinja template.
        template_kwargs: keyword arguments of the template, such as `{"enable_thinking": True}`.
        as_student: rows without a `teacher_prompt` keep the student's prompt ids, untouched.
    """

    student_tokenizer: Any
    teacher_tokenizer: Any = None
    template: str = "student"
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    as_student: bool = True

    @classmethod
    def configured(cls, args: Any, student_tokenizer: Any, teacher_tokenizer: Any) -> "TeacherContexts":
        """As `chat_template_kwargs`, `teacher_chat_template` and `teacher_chat_template_kwargs` of `args` say."""
        own_kwargs = dict(args.teacher_chat_template_kwargs or {})
        return cls(
            student_tokenizer,
            teacher_tokenizer,
            args.teacher_chat_template,
            {**(args.chat_template_kwargs or {}), **own_kwargs},
            as_student=args.teacher_chat_template == "student" and not own_kwargs,
        )

    def of(self, rows: Sequence[dict[str, Any]], prompt_ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """Token ids for each row: of its `teacher_prompt` where it has one, else of its prompt.

        Args:
            rows: the data set's rows.
            prompt_ids: the same rows' prompts as the student sees them, taken as they are where nothing differs.
        """
        return [
            list(ids) if self.as_student and row.get("teacher_prompt") is None else self._render(row)
            for row, ids in zip(rows, prompt_ids, strict=True)
        ]

    def _render(self, row: dict[str, Any]) -> list[int]:
        prompt = row["prompt"] if row.get("teacher_prompt") is None else row["teacher_prompt"]
        by_student = self.template == "student" or self.teacher_tokenizer is None
        tokenizer = self.student_tokenizer if by_student else self.teacher_tokenizer
        if isinstance(prompt, str):
            return list(tokenizer(prompt)["input_ids"])
        options = dict(self.template_kwargs)
        if self.template not in ("student", "teacher"):
            options["chat_template"] = self.template
        rendered = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True, **options
        )
        return list(rendered["input_ids"])
