"""Do student and teacher fit together? Asked of tokenizers, configurations and a few prompts, without weights."""

from collections.abc import Iterator, Sequence
from typing import Any

from ..models.files import ModelFiles, read_model_files
from ..teacher.endings import declared_endings, pair_endings, sentence
from ..teacher.vocabulary import highest_id, own_tokens, own_tokens_sentence, vocabulary_disagreement
from .findings import Finding, note, ok, refusal, warning
from .prompt_findings import PromptSettings, compare_prompts

__all__ = ["ModelFiles", "compare_pair", "read_model_files"]


def compare_pair(
    student: ModelFiles,
    teacher: ModelFiles,
    rows: Sequence[dict[str, Any]],
    *,
    max_completion_length: int,
    chat_template_kwargs: dict[str, Any] | None = None,
    teacher_chat_template: str = "student",
    teacher_chat_template_kwargs: dict[str, Any] | None = None,
    ending: str = "one_action",
    ending_ids: Sequence[int] | None = None,
) -> list[Finding]:
    """Everything that can be said of a pair without weights, subject by subject."""
    findings = [_vocabulary(student, teacher), *_heads(student, teacher), _special_tokens(student, teacher)]
    findings += [_ends(student, teacher, ending, ending_ids), _padding(student)]
    if any(finding.level == "refusal" for finding in findings):
        return findings  # prompts of other token ids cannot be compared
    settings = PromptSettings(
        max_completion_length,
        dict(chat_template_kwargs or {}),
        teacher_chat_template,
        dict(teacher_chat_template_kwargs or {}),
    )
    return findings + compare_prompts(student, teacher, list(rows), settings)


def _vocabulary(student: ModelFiles, teacher: ModelFiles) -> Finding:
    disagreement = vocabulary_disagreement(student.tokenizer, teacher.tokenizer, teacher.head_rows)
    if disagreement is not None:
        return refusal("vocabulary", disagreement[0].upper() + disagreement[1:])
    own = own_tokens(student.tokenizer, teacher.tokenizer, teacher.head_rows)
    if own:
        return note("vocabulary", own_tokens_sentence(student.tokenizer, own))
    size = len(student.tokenizer.get_vocab())
    return ok("vocabulary", f"Both tokenizers give the student's {size} tokens the same ids.")


def _heads(student: ModelFiles, teacher: ModelFiles) -> Iterator[Finding]:
    highest = highest_id(student.tokenizer)
    if highest >= student.head_rows:
        yield refusal(
            "output layers",
            f"The student's tokenizer uses token ids up to {highest}, but the student's output layer has only "
            f"{student.head_rows} rows, so it cannot write them. The folder {student.name!r} mixes two models; load "
            "the tokenizer of these weights, or resize the embeddings.",
        )
    elif student.head_rows > teacher.head_rows:
        yield note(
            "output layers",
            f"The student's output layer has {student.head_rows} rows, the teacher's {teacher.head_rows}; the "
            f"tokenizer needs {highest + 1}. If the student samples one of the unused ids beyond the teacher's, that "
            "token and the rest of its response are excluded.",
        )
    elif student.head_rows < teacher.head_rows:
        yield ok(
            "output layers",
            f"The output layers have {student.head_rows} and {teacher.head_rows} rows over one tokenizer of "
            f"{highest + 1} ids: rows beyond it are padding, and the top-k is chosen among the shared ones.",
        )


def _special_tokens(student: ModelFiles, teacher: ModelFiles) -> Finding:
    """Names of special tokens; endings have a finding of their own."""
    ours, theirs = student.tokenizer, teacher.tokenizer
    differing = [
        f"{name} is {getattr(ours, name)!r} for the student and {getattr(theirs, name)!r} for the teacher"
        for name in ("bos_token", "pad_token", "unk_token")
        if getattr(ours, name) != getattr(theirs, name)
    ]
    named = {ours.bos_token, ours.eos_token, ours.pad_token, ours.unk_token}
    named |= {theirs.bos_token, theirs.eos_token, theirs.pad_token, theirs.unk_token}
    for owner, mine, other in (("student", ours, theirs), ("teacher", theirs, ours)):
        only = [token for token in mine.all_special_tokens if token not in {*other.all_special_tokens, *named}]
        if only:
            differing.append(f"only the {owner} treats {_listed(only)} as special")
    if not differing:
        return ok("special tokens", "Both tokenizers have the same special tokens.")
    return note(
        "special tokens",
        f"They differ: {'; '.join(differing)}. The teacher reads ids, so this matters only when text is rendered: see "
        "the findings on prompts.",
    )


def _ends(student: ModelFiles, teacher: ModelFiles, ending: str, ending_ids: Sequence[int] | None) -> Finding:
    if not student.eos_ids:
        return refusal(
            "end of sequence",
            "The student has no end-of-sequence token: neither its generation_config.eos_token_id nor its tokenizer "
            "names one, so no response could end. Set eos_token in its tokenizer_config.json.",
        )
    endings = pair_endings(
        declared_endings(student.generation_config, student.tokenizer),
        {None: declared_endings(teacher.generation_config, teacher.tokenizer)},
        ending=ending,
        ending_ids=ending_ids,
        vocab_size=min(student.head_rows, teacher.head_rows),
    )
    said = sentence(endings, student.tokenizer)
    if not endings.differ:
        return ok("end of sequence", said)
    if endings.merged:
        return note("end of sequence", said)
    return warning(
        "end of sequence",
        f"{said} The teacher will score the last token of the student's responses as nearly impossible, and the "
        "student forgets how to stop, or learns an ending at which its rollouts do not stop. Set ending: one_action.",
    )


def _padding(student: ModelFiles) -> Finding:
    pad, eos = student.tokenizer.pad_token_id, student.tokenizer.eos_token_id
    if pad is None and eos is None:
        return refusal(
            "padding",
            "The student's tokenizer has neither a padding nor an end-of-sequence token, and TRL needs one to pad "
            "with. Set pad_token in its tokenizer_config.json.",
        )
    if pad is None or pad in student.eos_ids:
        what = "has no padding token, so TRL pads with" if pad is None else "pads with"
        token = student.tokenizer.convert_ids_to_tokens(eos if pad is None else pad)
        return note(
            "padding",
            f"The student's tokenizer {what} an end-of-sequence token ({token!r}). No action is needed: tropd "
            "identifies padding by position, so real endings are scored and learned.",
        )
    return ok("padding", f"Padding ({student.tokenizer.pad_token!r}) is not an end-of-sequence token.")


def _listed(tokens: Sequence[str | None], limit: int = 5) -> str:
    more = f" and {len(tokens) - limit} more" if len(tokens) > limit else ""
    return ", ".join(repr(token) for token in tokens[:limit]) + more
