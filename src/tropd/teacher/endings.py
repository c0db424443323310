"""Which ids end a response of a pair: what both models declare, and what their chat templates write.

An end of turn that is not the end of a response is kept apart: where a model's chat template writes an id somewhere in
a conversation, but not after the last message of the assistant, the id separates messages (Llama 3's `<|eom_id|>`,
after which a tool answers). The sampler stops at it where the student declares it, and it is never one action with the
end of a response.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..models.chat_templates import TemplateStopped, render
from .names import Name, teacher_phrase

_SAID = "tropd-marks-the-end-of-this-message"


@dataclass(frozen=True)
class Declared:
    """What one model says of its endings, without its weights.

    Attributes:
        ids: ids that end a response, the tokenizer's first, then those of generation_config and chat template.
        sources: id → who names it: `generation_config`, `tokenizer`, `chat template`.
        separators: special ids that its chat template writes between messages only, declared or not.
    """

    ids: tuple[int, ...]
    sources: dict[int, tuple[str, ...]] = field(default_factory=dict)
    separators: tuple[int, ...] = ()

    @property
    def stops(self) -> tuple[int, ...]:
        """Every id at which the model's own generation stops."""
        named = tuple(i for i, sources in self.sources.items() if sources != ("chat template",))
        return (*(i for i in self.ids if i in named), *(i for i in self.separators if i in self.sources))


def declared_endings(generation_config: Any, tokenizer: Any) -> Declared:
    """Read a model's endings from its generation settings and its tokenizer; either may be `None`."""
    sources: dict[int, tuple[str, ...]] = {}
    own = None if tokenizer is None else tokenizer.eos_token_id
    closing = [] if tokenizer is None else closing_ids(tokenizer)
    for name, ids in (
        ("tokenizer", [] if own is None else [own]),
        ("generation_config", as_ids(getattr(generation_config, "eos_token_id", None))),
        ("chat template", closing[:1]),
    ):
        for token_id in dict.fromkeys(ids):
            sources[token_id] = (*sources.get(token_id, ()), name)
    # A template that could not be asked tells nothing apart; one may begin with an id that ends elsewhere.
    begins = None if tokenizer is None else tokenizer.bos_token_id
    apart = tuple(
        i
        for i in (special_ids(tokenizer) if closing else ())
        if i not in closing and i != begins and _is_written_by_template(i, tokenizer)
    )
    return Declared(tuple(i for i in sources if i not in apart), sources, apart)


def closing_ids(tokenizer: Any) -> list[int]:
    """The special ids that the chat template writes after the last message of the assistant, in order.

    None where there is no template, or where it does not render a question and its answer.
    """
    if not tokenizer.chat_template:
        return []
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _SAID}]
    try:
        text = render(tokenizer, messages, tokenize=False)
    except TemplateStopped:
        raise
    except Exception:  # a template is a program; one for other conversations than this says nothing of its endings
        return []
    _, mark, tail = text.rpartition(_SAID)
    special = special_ids(tokenizer)
    return [i for i in tokenizer(tail, add_special_tokens=False)["input_ids"] if i in special] if mark else []


def special_ids(tokenizer: Any) -> list[int]:
    """Ids of the tokens that are no text: special ones, and those added as such."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return sorted({*tokenizer.all_special_ids, *added})


def _is_written_by_template(token_id: int, tokenizer: Any) -> bool:
    template = tokenizer.chat_template
    texts = template.values() if isinstance(template, dict) else [template]
    return any(str(tokenizer.convert_ids_to_tokens(token_id)) in text for text in texts)


def as_ids(value: Any) -> list[int]:
    """An `eos_token_id` as a list, however it is written."""
    return [] if value is None else [int(i) for i in value] if isinstance(value, (list, tuple)) else [int(value)]


@dataclass(frozen=True)
class PairEndings:
    """How the responses of a run end. Made by `pair_endings`.

    Attributes:
        ids: E, all ids that end a response for student or teacher, the student's own first.
        stop_ids: every id at which the sampler stops: E where it is one action, and the student's ends of turns.
        merged: is E scored as one action?
        reason: why it is not; empty where it is.
        student: what the student declares.
        teachers: what each teacher declares.
    """

    ids: tuple[int, ...]
    stop_ids: tuple[int, ...]
    merged: bool
    reason: str
    student: Declared
    teachers: Mapping[Name, Declared]

    @cached_property
    def as_one(self) -> tuple[int, ...]:
        """E for the objective: empty where every ending is an action of its own."""
        return self.ids if self.merged else ()

    @cached_property
    def unheeded(self) -> tuple[int, ...]:
        """Endings at which the student does not stop: what it learns to write there, it writes past."""
        return tuple(i for i in self.ids if i not in self.stop_ids)

    @property
    def differ(self) -> bool:
        """Does any teacher name other ids than the student?"""
        return any(set(teacher.ids) != set(self.student.ids) for teacher in self.teachers.values())

    def as_dict(self) -> dict[str, Any]:
        """For `run.json`."""
        return {
            "ids": list(self.ids),
            "stop_ids": list(self.stop_ids),
            "one_action": self.merged,
            "reason": self.reason or None,
            "student": list(self.student.ids),
            "teachers": {name or "teacher": list(teacher.ids) for name, teacher in self.teachers.items()},
        }


def pair_endings(
    student: Declared,
    teachers: Mapping[Name, Declared],
    *,
    ending: str,
    ending_ids: Sequence[int] | None,
    vocab_size: int,
) -> PairEndings:
    """E of a student and its teachers, and what is done with it.

    Args:
        student: what the student declares.
        teachers: what each teacher declares.
        ending: `one_action` or `as_given`.
        ending_ids: E, in the place of what was found; with `as_given`, where the sampler stops.
        vocab_size: ids that all models have.

    Raises:
        ValueError: `ending_ids` that no head has, or that are given twice.
    """
    found = _found(student, teachers)
    known = tuple(i for i in found if i < vocab_size)
    if ending_ids is not None:
        _check_given(ending_ids, known, vocab_size)
    ids = known if ending_ids is None else tuple(ending_ids)
    if ending == "as_given":
        stops = student.stops if ending_ids is None else ids
        reason = "ending is as_given"
        return PairEndings(tuple(dict.fromkeys((*ids, *known))), stops, False, reason, student, teachers)
    reason = _why_apart(ids, [i for i in found if i not in known], given=ending_ids is not None)
    if ending_ids is None and student.ids and not set(student.ids) & set(found):
        reason = "the student's ending only separates messages for a teacher"
    stops = tuple(dict.fromkeys((*ids, *student.stops)))
    return PairEndings(ids, stops, not reason, reason, student, teachers)


def _check_given(ending_ids: Sequence[int], known: Sequence[int], vocab_size: int) -> None:
    if not ending_ids or len(set(ending_ids)) < len(ending_ids) or any(not 0 <= i < vocab_size for i in ending_ids):
        raise ValueError(
            f"ending_ids is {list(ending_ids)}; give distinct token ids from 0 to {vocab_size - 1}, which all models "
            f"have, or remove it: {list(known)} was found."
        )


def _found(student: Declared, teachers: Mapping[Name, Declared]) -> tuple[int, ...]:
    """Every id that ends a response for one of the models, and no turn for another."""
    models = (student, *teachers.values())
    apart = {i for model in models for i in model.separators}
    return tuple(dict.fromkeys(i for model in models for i in model.ids if i not in apart))


def _why_apart(ids: Sequence[int], outside: Sequence[int], given: bool) -> str:
    if given and len(ids) == 1:
        return "ending_ids names one id"
    if not ids:
        return "no model names an id that ends a response"
    if len(ids) == 1 and outside:
        return f"the other endings ({', '.join(map(str, outside))}) are ids that not all models have"
    return "" if len(ids) > 1 else "all models end a response with the same id"


def sentence(endings: PairEndings, tokenizer: Any) -> str:
    """How a run treats its endings, in one line."""
    who = [("the student", endings.student), *((teacher_phrase(name), own) for name, own in endings.teachers.items())]
    said = "; ".join(f"{name} ends with {describe_ids(own.ids, tokenizer)}" for name, own in who)
    if endings.merged:
        return f"{_capitalise(said)}. They are scored as one action, and rollouts stop at each of them."
    stops = f"rollouts stop at {describe_ids(endings.stop_ids, tokenizer)}"
    return f"{_capitalise(said)}. Each id is scored separately ({endings.reason}), and {stops}."


def describe_ids(ids: Sequence[int], tokenizer: Any) -> str:
    """Tokens with their ids; ids alone without a tokenizer, and where it has no token of the id."""
    tokens = [None] * len(ids) if tokenizer is None else tokenizer.convert_ids_to_tokens(list(ids))
    named = [str(i) if token is None else f"{token!r} ({i})" for i, token in zip(ids, tokens, strict=True)]
    return " and ".join(named) or "nothing"


def _capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]
