"""Do both models mean the same by a token id? Asked once, before any training."""

from typing import Any


def check_vocabularies(student_tokenizer: Any, teacher_tokenizer: Any | None, teacher_vocab_size: int) -> None:
    """Refuse a pair whose token ids disagree.

    Args:
        student_tokenizer: the tokenizer of the rollouts.
        teacher_tokenizer: the teacher's own, or `None` where the teacher has none (then only sizes are compared).
        teacher_vocab_size: rows of the teacher's output layer.

    Raises:
        ValueError: with the first ids that differ.
    """
    disagreement = vocabulary_disagreement(student_tokenizer, teacher_tokenizer, teacher_vocab_size)
    if disagreement is not None:
        raise ValueError(disagreement)


def vocabulary_disagreement(
    student_tokenizer: Any, teacher_tokenizer: Any | None, teacher_vocab_size: int
) -> str | None:
    """Why the teacher cannot read the student's token ids, in a sentence, or `None` where it can.

    Padding rows beyond the tokenizer do not matter, nor do tokens of the student's that are never read or written, such
    as a padding token that it was given. Arguments as `check_vocabularies` takes them.
    """
    own = own_tokens(student_tokenizer, teacher_tokenizer, teacher_vocab_size)
    read = {token: why for token in own if (why := _why_read(token, student_tokenizer)) is not None}
    if not read:
        return None
    highest = highest_id(student_tokenizer)
    vocabulary = student_tokenizer.get_vocab()
    theirs = {} if teacher_tokenizer is None else teacher_tokenizer.get_vocab()
    token, why = next(iter(read.items()))
    if highest >= teacher_vocab_size:
        beyond = [f"{name!r} ({vocabulary[name]})" for name in own if vocabulary[name] >= teacher_vocab_size]
        return (
            f"the student's tokenizer uses token ids up to {highest}, but the teacher scores only "
            f"{teacher_vocab_size} ids: it lacks {', '.join(beyond[:3])}{' …' if beyond[3:] else ''}. On-policy "
            f"distillation reads the student's tokens with the teacher, and {token!r} {why}. Choose a teacher of the "
            "same family, or a student without these tokens."
        )
    shown = "; ".join(
        f"{name!r} is {vocabulary[name]} for the student and {theirs.get(name, 'unknown')} for the teacher"
        for name in list(read)[:3]
    )
    return (
        f"the tokenizers disagree on {len(own)} of {len(vocabulary)} tokens ({shown}; {token!r} {why}). The teacher "
        "would not score the words that the student wrote; choose a teacher with the same tokenizer."
    )


def own_tokens(student_tokenizer: Any, teacher_tokenizer: Any | None, teacher_vocab_size: int) -> list[str]:
    """The student's tokens that the teacher does not have, or by another id: the exchanged first, then by their ids."""
    vocabulary: dict[str, int] = student_tokenizer.get_vocab()
    theirs = vocabulary if teacher_tokenizer is None else teacher_tokenizer.get_vocab()
    own = [token for token, i in vocabulary.items() if theirs.get(token) != i or i >= teacher_vocab_size]
    return sorted(own, key=lambda token: (token not in theirs, vocabulary[token]))


def own_tokens_sentence(student_tokenizer: Any, own: list[str]) -> str:
    """What becomes of the student's tokens that the teacher does not have."""
    ids = student_tokenizer.get_vocab()
    shown = ", ".join(f"{token!r} ({ids[token]})" for token in own[:5]) + (" …" if own[5:] else "")
    return (
        f"The student's tokenizer has tokens that the teacher does not know, and that nothing writes into a prompt: "
        f"{shown}. The teacher cannot score them: if the student writes one, that token and the rest of the response "
        "are excluded."
    )


def _why_read(token: str, tokenizer: Any) -> str | None:
    """How a token comes into what is read or written, to follow its name; `None` where it does not.

    Special tokens are no text. One that neither the chat template writes, nor the tokenizer beside a text, nor ends a
    response is there for padding, or for what is not done here.
    """
    special = set(getattr(tokenizer, "all_special_tokens", ()))
    special |= {str(added) for added in getattr(tokenizer, "added_tokens_decoder", {}).values() if added.special}
    if token not in special:
        return "is text"
    if token in (tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token):
        return "is the beginning, the end, or what is unknown"
    if token in str(tokenizer.chat_template or ""):
        return "is in its chat template"
    if tokenizer.convert_tokens_to_ids(token) in tokenizer("")["input_ids"]:
        return "is put beside every text"
    return None


def highest_id(tokenizer: Any) -> int:
    """The largest token id that the tokenizer uses."""
    return int(max(tokenizer.get_vocab().values()))
