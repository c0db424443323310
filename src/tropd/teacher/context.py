"""What a model reads before a response, as token ids; and the teacher's, which is the student's own prompt unless told
otherwise.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from types import NoneType
from typing import Any

from jinja2 import TemplateError

from ..messages import TOOLS, read_tools
from ..models.chat_templates import render

Row = dict[str, Any]

SOME_TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]},
    },
}

logger = logging.getLogger(__name__)


class ToolsLost(ValueError):
    """There are tools, and a chat template that renders none."""


def tools_of(row: Row) -> list[Any] | None:
    """The tools that a row brings along for its chat template; none where there is only text, which has no template.

    Raises:
        ValueError: a `tools` column that is neither a list of objects nor the JSON text of one.
    """
    value = row.get(TOOLS)
    if not value or all(isinstance(row.get(name), (str, NoneType)) for name in ("prompt", "teacher_prompt")):
        return None
    try:
        return read_tools(value)
    except ValueError as error:
        raise ValueError(
            f"tools is {error} ({value!r:.80}) in a row whose prompt is {row.get('prompt')!r:.60}; write the tools' "
            "JSON schemas, as a list or as JSON text, or remove the column."
        ) from error


def text_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts, without what the tokenizer appends to every text.

    `add_eos_token`, BERT's [SEP]: a response is to follow the prompt, not its end. An ending that the text itself
    holds is its own and stays.
    """
    whole = [list(ids) for ids in tokenizer(list(texts))["input_ids"]]
    if len({tuple(ids[-1:]) for ids in whole}) > 1:
        return whole
    bare = [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    kept = []
    for ids, own in zip(whole, bare, strict=True):
        start = next((n for n in range(len(ids) - len(own)) if own and ids[n : n + len(own)] == own), len(ids))
        kept.append(ids[: start + len(own)])
        if len(kept[-1]) < len(ids):
            _say_dropped(tuple(tokenizer.convert_ids_to_tokens(ids[len(kept[-1]) :])))
    return kept


def ids_behind(tokenizer: Any, text: str) -> list[int]:
    """What a tokenizer appends to a text."""
    return list(tokenizer(text)["input_ids"])[len(text_ids(tokenizer, [text])[0]) :]


@cache
def _say_dropped(tokens: tuple[str, ...]) -> None:
    """Once for all texts."""
    logger.warning(
        "The tokenizer ends every text with %s. It is removed from prompts, since a response follows them.",
        " ".join(map(repr, tokens)),
    )


def message_ids(tokenizer: Any, messages: Sequence[Row], tools: Any = None, **options: Any) -> list[int]:
    """Messages as their chat template renders them, with the opening of the answer.

    Raises:
        ToolsLost: there are tools, and the template renders none.
    """
    if tools:
        check_renders_tools(tokenizer, options)
        options["tools"] = tools
    rendered = render(tokenizer, messages, add_generation_prompt=True, tokenize=True, return_dict=True, **options)
    return list(rendered["input_ids"])


def check_renders_tools(tokenizer: Any, options: dict[str, Any]) -> None:
    """Refuse a chat template to which tools say nothing. `options` are keyword arguments of `apply_chat_template`.

    Raises:
        ToolsLost: with whose template it is, and what to type.
    """
    if not _renders_tools(tokenizer, options.get("chat_template") or str(tokenizer.chat_template)):
        raise ToolsLost(
            f"there are tools, but the chat template of {tokenizer.name_or_path or 'the tokenizer'} renders none, so "
            "a model would read, write or score calls of tools that it was never shown. Use a template that "
            "renders them (chat_template.jinja in the model's folder; teacher_chat_template), or remove the tools (the "
            f"data's column {TOOLS!r})."
        )


@lru_cache(maxsize=16)
def _renders_tools(tokenizer: Any, template: str) -> bool:
    messages = [{"role": "user", "content": "a"}]
    own = {} if template == str(tokenizer.chat_template) else {"chat_template": template}
    try:
        without, rendered = (
            render(tokenizer, messages, tokenize=False, tools=tools, **own) for tools in (None, [SOME_TOOL])
        )
    except TemplateError:  # a template for other conversations or other tools than these
        return True
    return bool(rendered != without)


def with_observation(row: Row, prompt: Any) -> Row:
    """A row as the student was asked it: the teacher also sees what an environment has added to the prompt."""
    own, teacher_prompt = row.get("prompt", [{"content": ""}]), row.get("teacher_prompt")
    asked = row | {"prompt": prompt}
    if own == prompt or teacher_prompt is None or isinstance(teacher_prompt, str) or isinstance(prompt, str):
        return asked
    observed = prompt[-1]["content"][len(own[-1]["content"]) :]
    last = teacher_prompt[-1]
    return asked | {"teacher_prompt": [*teacher_prompt[:-1], last | {"content": last["content"] + observed}]}


@dataclass(frozen=True)
class TeacherContexts:
    """Renders each row's prompt for the teacher: models share the tokens of a response, but not what stands before."""

    student_tokenizer: Any  # renders where `template` is `student`, or where the teacher has no tokenizer
    teacher_tokenizer: Any = None  # the teacher's own, or `None`
    template: str = "student"  # `student`, `teacher`, or a Jinja template
    # keyword arguments of the template, such as `{"enable_thinking": True}`
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    as_student: bool = True  # rows without a `teacher_prompt` keep the student's prompt ids, untouched
    # the tools that a row's messages are rendered with; those of its `tools` column by default
    tools: Callable[[Row], Any] = tools_of
    # a Jinja template by which the student's prompts are rendered instead of its tokenizer's own
    student_template: str | None = None

    @classmethod
    def from_args(cls, args: Any, student_tokenizer: Any, teacher_tokenizer: Any, **tools: Any) -> "TeacherContexts":
        """As `chat_template_kwargs`, `teacher_chat_template` and `teacher_chat_template_kwargs` of `args` say."""
        own_kwargs = dict(args.teacher_chat_template_kwargs or {})
        return cls(
            student_tokenizer,
            teacher_tokenizer,
            args.teacher_chat_template,
            {**(args.chat_template_kwargs or {}), **own_kwargs},
            as_student=args.teacher_chat_template == "student" and not own_kwargs,
            **tools,
        )

    def of(self, rows: Sequence[Row], prompt_ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """Token ids for each row: of its `teacher_prompt` where it has one, else of its prompt.

        `prompt_ids` are the prompts as the student sees them, taken as they are where nothing differs.
        """
        return [
            list(ids) if self.as_student and row.get("teacher_prompt") is None else self._render(row)
            for row, ids in zip(rows, prompt_ids, strict=True)
        ]

    def _render(self, row: Row) -> list[int]:
        prompt = row["prompt"] if row.get("teacher_prompt") is None else row["teacher_prompt"]
        tokenizer = self.tokenizer
        if isinstance(prompt, str):
            return text_ids(tokenizer, [prompt])[0]
        return message_ids(tokenizer, prompt, self.tools(row), **self.options)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that renders."""
        return self.student_tokenizer if self._by_student else self.teacher_tokenizer

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `apply_chat_template`."""
        by_student = {"chat_template": self.student_template} if self.student_template and self._by_student else {}
        given = {} if self.template in ("student", "teacher") else {"chat_template": self.template}
        return by_student | self.template_kwargs | given

    def student_options(self, row: Row) -> dict[str, Any]:
        """With what the student's prompt is rendered, beside its `chat_template_kwargs`."""
        options = {"chat_template": self.student_template, "tools": self.tools(row)}
        return {name: value for name, value in options.items() if value}

    @property
    def _by_student(self) -> bool:
        return self.template == "student" or self.teacher_tokenizer is None
