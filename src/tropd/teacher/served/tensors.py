"""Messages between a trainer and `tropd serve`: named tensors as safetensors, which contain numbers and no code.

A question is one micro-batch of rows, so that the server makes the very pass that the trainer would make. Of each token
that is scored it tells the log-probability at which the teacher's top-k is needed, so the answer holds few of them.

R counts rows, N scored response tokens, row after row; M ≤ N of them get the top-k.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ...objective.endings import Endings
from ..local import TeacherScores

VERSION = 1
"""Of questions and answers; another one is refused."""

MODELS, TOKENIZE, SCORE, WRITE = "/v1/models", "/tokenize", "/tropd/v1/score", "/tropd/v1/write"

QUESTION = {
    "ids": (torch.int32, 1),
    "context_lengths": (torch.int32, 1),
    "response_lengths": (torch.int32, 1),
    "scored": (torch.bool, 1),
    "below": (torch.float32, 1),
    "endings": (torch.int32, 1),
    "numbers": (torch.int64, 1),
    "bounds": (torch.float64, 1),
}
ANSWER = {
    "logp": (torch.float32, 1),
    "entropy": (torch.float32, 1),
    "topk_index": (torch.int32, 1),
    "topk_ids": (torch.int32, 2),
    "topk_logp": (torch.float32, 2),
}
"""Name → dtype and number of axes."""


@dataclass(frozen=True)
class ScoreQuestion:
    """A micro-batch to score; what has no comment is an argument of `LocalTeacher.score`."""

    contexts: list[list[int]]
    responses: list[list[int]]
    scored: list[list[bool]]
    below: Tensor  # [N] float32, log π_T up to which the top-k of a token is needed
    above: float  # its entropy, nats, above which it is
    k: int  # of the top-k; 0 asks for none
    vocab_limit: int  # of the top-k
    pad_id: int
    temperature: float
    endings: Endings

    def wants(self, logp: Tensor, entropy: Tensor, tokens: slice | Tensor = slice(None)) -> Tensor:
        """Which tokens get their top-k; both sides ask this, of the same numbers."""
        return (logp <= self.below.to(logp.device)[tokens]) & ~(entropy <= self.above)

    @property
    def num_tokens(self) -> int:
        """Of all rows, contexts included."""
        return sum(map(len, self.contexts)) + sum(map(len, self.responses))


def write_question(question: ScoreQuestion) -> bytes:
    """As it is sent."""
    rows = zip(question.contexts, question.responses, strict=True)
    return save(
        {
            "ids": _ints(itertools.chain.from_iterable((*context, *response) for context, response in rows)),
            "context_lengths": _ints(map(len, question.contexts)),
            "response_lengths": _ints(map(len, question.responses)),
            "scored": torch.tensor([mark for marks in question.scored for mark in marks], dtype=torch.bool),
            "below": question.below.float().cpu().contiguous(),
            "endings": _ints(question.endings),
            "numbers": torch.tensor([VERSION, question.k, question.vocab_limit, question.pad_id]),
            "bounds": torch.tensor([question.temperature, question.above], dtype=torch.float64),
        }
    )


def read_question(raw: bytes) -> ScoreQuestion:
    """A question that was sent, whose parts fit each other.

    Raises:
        ValueError: with what does not.
    """
    given = read_tensors(raw, QUESTION)
    contexts_R, responses_R = given["context_lengths"].tolist(), given["response_lengths"].tolist()
    if not contexts_R or len(contexts_R) != len(responses_R) or min(contexts_R) < 1 or min(responses_R) < 0:
        raise ValueError("its rows do not have one context and one response each")
    if len(given["numbers"]) != 4 or len(given["bounds"]) != 2:
        raise ValueError("it does not have four numbers and two bounds")
    version, k, vocab_limit, pad_id = given["numbers"].tolist()
    temperature, above = given["bounds"].tolist()
    if version != VERSION:
        raise ValueError(
            f"it is of version {version}, but this server uses version {VERSION}: use the same release of "
            "tropd at both ends"
        )
    ids, scored = given["ids"].tolist(), given["scored"].tolist()
    if len(ids) != sum(contexts_R) + sum(responses_R) or len(scored) != sum(responses_R):
        raise ValueError("the number of its ids or marks does not match the lengths of its rows")
    if len(given["below"]) != sum(scored):
        raise ValueError("it does not have one bound for each scored token")
    if min(ids) < 0 or not 0 < temperature < math.inf or k < 0 or pad_id < 0 or vocab_limit < k:
        raise ValueError("it has numbers out of range")
    contexts, responses, marks, place, at = [], [], [], 0, 0
    for context, response in zip(contexts_R, responses_R, strict=True):
        contexts.append(ids[place : place + context])
        responses.append(ids[place + context : place + context + response])
        marks.append(scored[at : at + response])
        place, at = place + context + response, at + response
    endings = tuple(given["endings"].tolist())
    return ScoreQuestion(
        contexts, responses, marks, given["below"], above, k, vocab_limit, pad_id, temperature, endings
    )


def write_answer(scores: TeacherScores) -> bytes:
    """As it is sent: 8 bytes a token, and 4 + 8 K more for each with a top-k."""
    named = {name: getattr(scores, name).to(dtype) for name, (dtype, _) in ANSWER.items()}
    return save({name: tensor.cpu().contiguous() for name, tensor in named.items()})


def most_bytes(question: ScoreQuestion) -> int:
    """Of an answer."""
    return 2**12 + len(question.below) * (12 + 8 * question.k)


def check_answer(answer: dict[str, Tensor], question: ScoreQuestion, slack: float) -> None:
    """Refuse an answer that is not one to the question.

    Raises:
        ValueError: with what is wrong of it.
    """
    logp, index, ids, count = answer["logp"], answer["topk_index"], answer["topk_ids"], len(question.below)
    if len(logp) != count or len(answer["entropy"]) != count:
        raise ValueError(f"{len(logp)} log-probabilities and {len(answer['entropy'])} entropies for {count} tokens")
    if (logp > slack).any() or (answer["topk_logp"] > slack).any():
        raise ValueError("an impossible log-probability")
    wanted = question.wants(logp, answer["entropy"]).nonzero().squeeze(-1) if question.k else torch.empty(0)
    if index.tolist() != wanted.tolist():
        raise ValueError(f"the top-k of {len(index)} tokens instead of the {len(wanted)} requested")
    if ids.shape != answer["topk_logp"].shape or ids.shape != (len(index), question.k):
        raise ValueError(f"a top-k of shape {tuple(ids.shape)} for {len(index)} tokens and k = {question.k}")
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < question.vocab_limit:
        raise ValueError("a top-k with ids outside the student's vocabulary")


def read_tensors(raw: bytes, wanted: dict[str, tuple[torch.dtype, int]] = ANSWER) -> dict[str, Tensor]:
    """The tensors of a message, by name.

    Raises:
        ValueError: the bytes hold others.
    """
    try:
        found: dict[str, Tensor] = load(raw)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError("truncated, or not a message of tropd serve") from error
    kinds = {name: (tensor.dtype, tensor.ndim) for name, tensor in found.items()}
    if kinds != wanted:
        raise ValueError("a message of a different kind or release of tropd serve")
    return found


def check_written(answer: dict[str, Any], rows: int, longest: int) -> list[list[int]]:
    """The responses of an answer.

    Raises:
        ValueError: there is not one for each row, or one is none.
    """
    found = answer.get("responses")
    if not isinstance(found, list) or len(found) != rows or not all(_is_response(one, longest) for one in found):
        raise ValueError(f"something other than {rows} responses of at most {longest} token ids each")
    return found


def _is_response(one: Any, longest: int) -> bool:
    return isinstance(one, list) and len(one) <= longest and all(type(token) is int and token >= 0 for token in one)


def _ints(values: Any) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int32)


def concatenate(answers: Sequence[dict[str, Tensor]], name: str) -> Tensor:
    """One of the answers' tensors, one answer after the other."""
    return torch.cat([answer[name] for answer in answers])
