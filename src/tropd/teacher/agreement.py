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

    Padding rows beyond the tokenizer do not matter. Arguments as `check_vocabularies` takes them.
    """
    vocabulary: dict[str, int] = student_tokenizer.get_vocab()
    highest = highest_id(student_tokenizer)
    if highest >= teacher_vocab_size:
        return (
            f"the student's tokenizer uses token ids up to {highest}, but the teacher scores only "
            f"{teacher_vocab_size} ids. On-policy distillation reads the student's tokens with the teacher, so both "
            "need one vocabulary; choose a teacher of the same family."
        )
    if teacher_tokenizer is None:
        return None
    theirs: dict[str, int] = teacher_tokenizer.get_vocab()
    differing = sorted(
        (token_id, token) for token, token_id in vocabulary.items() if theirs.get(token, token_id) != token_id
    )
    missing = sorted((token_id, token) for token, token_id in vocabulary.items() if token not in theirs)
    if not differing and not missing:
        return None
    shown = "; ".join(
        f"{token!r} is {token_id} for the student and {theirs.get(token, 'unknown')} for the teacher"
        for token_id, token in (differing + missing)[:3]
    )
    return (
        f"the tokenizers disagree on {len(differing) + len(missing)} of {len(vocabulary)} tokens ({shown}). "
        "The teacher would score other words than the student wrote; choose a teacher with the same tokenizer."
    )


def highest_id(tokenizer: Any) -> int:
    """The largest token id that the tokenizer uses."""
    return max(tokenizer.get_vocab().values())
