"""How student and teacher will see the prompts: templates, first tokens, lengths."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from ..messages import TOOLS
from ..models.files import ModelFiles
from ..teacher.context import TeacherContexts, ToolsLost, check_renders_tools, ids_behind
from .findings import Finding, note, ok, refusal, warning

Row = dict[str, Any]
Ids = list[list[int]]
SHOWN_TOKENS = 8
"""Tokens shown from the first difference of two renderings on."""


@dataclass(frozen=True)
class PromptSettings:
    """The part of a configuration that decides how prompts are rendered; see `TrOPDConfig`."""

    max_completion_length: int
    chat_template_kwargs: dict[str, Any]
    teacher_chat_template: str
    teacher_chat_template_kwargs: dict[str, Any]


def compare_prompts(
    student: ModelFiles, teacher: ModelFiles, rows: Sequence[Row], settings: PromptSettings
) -> list[Finding]:
    """Findings on `rows` as both models will see them."""
    rows = [row for row in rows if row.get("prompt") is not None]
    if not rows:
        return [note("prompts", "There are no prompts to render, so templates and lengths were not checked.")]
    findings = list(_templates(student, teacher, rows, settings))
    if any(finding.level == "refusal" for finding in findings):
        return findings
    nothing: Ids = [[] for _ in rows]
    shown = [{name: value for name, value in row.items() if name != "teacher_prompt"} for row in rows]
    student_ids = TeacherContexts(
        student.tokenizer, template_kwargs=settings.chat_template_kwargs, as_student=False
    ).of(shown, nothing)
    seen = _contexts(student, teacher, settings.teacher_chat_template, settings).of(rows, student_ids)
    findings += _beginnings(student, student_ids)
    findings += _ends_of_prompts(student, rows, student_ids)
    findings += _teacher_view(student, teacher, rows, settings, student_ids, seen)
    findings += _lengths("student", student, student_ids, settings)
    findings += _lengths("teacher", teacher, seen, settings)
    return findings


def _contexts(student: ModelFiles, teacher: ModelFiles, template: str, settings: PromptSettings) -> TeacherContexts:
    return TeacherContexts(
        student.tokenizer,
        teacher.tokenizer,
        template,
        {**settings.chat_template_kwargs, **settings.teacher_chat_template_kwargs},
        as_student=template == "student" and not settings.teacher_chat_template_kwargs,
    )


def _templates(
    student: ModelFiles, teacher: ModelFiles, rows: Sequence[Row], settings: PromptSettings
) -> Iterator[Finding]:
    """Can the prompts be rendered, and do they look as if they should be?"""
    messages = [row for row in rows if not isinstance(row["prompt"], str)]
    if messages and not student.tokenizer.chat_template:
        yield refusal(
            "chat template",
            f"{len(messages)} of {len(rows)} prompts are messages, but the student's tokenizer has no chat template to "
            "render them. Give plain-text prompts (without chat), or save a chat_template.jinja in the student's "
            "folder.",
        )
    if messages and settings.teacher_chat_template == "teacher" and not teacher.tokenizer.chat_template:
        yield refusal(
            "chat template",
            "teacher_chat_template is 'teacher', but the teacher's tokenizer has no chat template. Use 'student', or "
            "give a Jinja template.",
        )
    elif any(row.get(TOOLS) for row in messages):
        teachers = _contexts(student, teacher, settings.teacher_chat_template, settings)
        try:
            check_renders_tools(student.tokenizer, settings.chat_template_kwargs)
            check_renders_tools(teachers.tokenizer, teachers.options)
        except ToolsLost as error:
            yield refusal("tools", str(error))
        else:
            yield ok("tools", "The prompts tell both models of the tools.")
    if len(messages) < len(rows) and student.tokenizer.chat_template:
        yield warning(
            "chat template",
            f"{len(rows) - len(messages)} of {len(rows)} prompts are plain text, although the student has a chat "
            "template: it will read them as text to continue, without the template. Set `chat: true` to make each a "
            "user's message, unless the text is rendered already or the student is a base model.",
        )


def _beginnings(student: ModelFiles, student_ids: Ids) -> Iterator[Finding]:
    bos = student.tokenizer.bos_token_id
    twice = sum(ids[:2] == [bos, bos] for ids in student_ids if bos is not None)
    if twice:
        yield warning(
            "beginning of sequence",
            f"{twice} of {len(student_ids)} prompts begin with {student.tokenizer.bos_token!r} twice: their text holds "
            "one and the tokenizer adds another. Remove it from the text.",
        )


def _ends_of_prompts(student: ModelFiles, rows: Sequence[Row], student_ids: Ids) -> Iterator[Finding]:
    tokenizer = student.tokenizer
    text = next((row["prompt"] for row in rows if isinstance(row["prompt"], str)), None)
    behind = [] if text is None else ids_behind(tokenizer, text)
    if behind:
        tokens = " ".join(map(repr, tokenizer.convert_ids_to_tokens(behind)))
        yield note(
            "end of prompts",
            f"The student's tokenizer appends {tokens} to every text, where the response follows; it is removed.",
        )
    ended = [ids[-1] for ids in student_ids if ids and ids[-1] in student.eos_ids]
    if ended:
        yield warning(
            "end of prompts",
            f"{len(ended)} of {len(student_ids)} prompts end with {tokenizer.convert_ids_to_tokens(ended[0])!r}, an "
            "end of sequence that their text or the chat template writes: the student would continue after an ending. "
            "Remove it, unless the models were trained this way.",
        )


def _teacher_view(
    student: ModelFiles, teacher: ModelFiles, rows: Sequence[Row], settings: PromptSettings, student_ids: Ids, seen: Ids
) -> Iterator[Finding]:
    """Does the teacher see the prompts as it would render them itself?"""
    template = settings.teacher_chat_template
    if any(not isinstance(row["prompt"], str) for row in rows) and not teacher.tokenizer.chat_template:
        yield note(
            "teacher's view",
            "The teacher has no chat template; it reads the student's, which it may never have seen.",
        )
        return
    try:
        own = _contexts(student, teacher, "teacher", settings).of(rows, student_ids)
    except (TemplateError, ToolsLost) as error:
        yield note(
            "teacher's view",
            f"The teacher's own chat template refuses these prompts ({error}); it reads them as "
            f"teacher_chat_template={template!r} renders them.",
        )
        return
    yield from _bos_difference(teacher, seen, own)
    seen, own = _without_bos(teacher, seen), _without_bos(teacher, own)
    differing = [(ours, theirs) for ours, theirs in zip(seen, own, strict=True) if ours != theirs]
    if differing:
        yield Finding(
            "warning" if template == "student" else "note",
            "teacher's view",
            f"The teacher would render {len(differing)} of {len(rows)} prompts differently from what it will see. "
            f"{_first_difference(teacher, *differing[0])} The teacher is most reliable with the template it was "
            "trained with: set teacher_chat_template: teacher to use its own, and teacher_chat_template_kwargs to "
            "pass options such as {enable_thinking: false}.",
        )
    elif seen != _without_bos(student, student_ids):
        yield note(
            "teacher's view",
            "As configured, the teacher sees a different context than the student, rendered with its own tokenizer and "
            "template; the response tokens are shared.",
        )
    else:
        yield ok("teacher's view", "Both models render the prompts to the same token ids.")


def _bos_difference(teacher: ModelFiles, seen: Ids, own: Ids) -> Iterator[Finding]:
    bos = teacher.tokenizer.bos_token_id
    sees, wants = seen[0][:1] == [bos], own[0][:1] == [bos]
    if bos is None or sees == wants:
        return
    token = teacher.tokenizer.bos_token
    yield Finding(
        "warning" if wants else "note",
        "beginning of sequence",
        f"The teacher's own tokenizer {'begins' if wants else 'does not begin'} a prompt with {token!r}, but the "
        f"prompts it will see {'do not' if wants else 'do'}. "
        + ("Models that expect it read poorly without it. " if wants else "")
        + "Set teacher_chat_template: teacher so that its prompts begin as it expects.",
    )


def _without_bos(model: ModelFiles, contexts: Ids) -> Ids:
    bos = model.tokenizer.bos_token_id
    return [ids[1:] if bos is not None and ids[:1] == [bos] else ids for ids in contexts]


def _first_difference(teacher: ModelFiles, seen: list[int], own: list[int]) -> str:
    place = next(
        (i for i, (ours, theirs) in enumerate(zip(seen, own, strict=False)) if ours != theirs), min(len(seen), len(own))
    )

    def shown(ids: list[int]) -> str:
        text = teacher.tokenizer.decode(ids[place : place + SHOWN_TOKENS])
        return repr(text) if len(ids) > place else "nothing more"

    return f"From token {place} on it will see {shown(seen)} where its own has {shown(own)}."


def _lengths(role: str, model: ModelFiles, contexts: Ids, settings: PromptSettings) -> Iterator[Finding]:
    longest, limit = max(len(ids) for ids in contexts), model.context_length
    needed = longest + settings.max_completion_length
    if limit is None:
        return
    arithmetic = (
        f"The longest prompt has {longest} tokens for the {role}, and max_completion_length is "
        f"{settings.max_completion_length}: {needed} together"
    )
    if needed <= limit:
        yield ok(f"{role}'s context", f"{arithmetic}, within its {limit} positions.")
        return
    room = limit - longest
    yield refusal(
        f"{role}'s context",
        f"{arithmetic}, but it was made for {limit} positions (max_position_embeddings) and cannot read beyond them. "
        + (f"Set max_completion_length to at most {room}, or remove" if room > 0 else "Remove")
        + " the longest prompts.",
    )
