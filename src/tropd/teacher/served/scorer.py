"""A teacher behind `tropd serve`: the passes of `LocalTeacher`, made elsewhere, bit for bit on one kind of machine.

N counts scored response tokens, row after row; M ≤ N of them are asked for the teacher's top-k.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor

from ...objective.endings import Endings
from ...objective.randomness import DrawAddress
from ..local import TeacherScores, TopKRequest
from .asked import AskedTeacher
from .http import Client, ServerRefused
from .tensors import (
    ANSWER,
    SCORE,
    WRITE,
    ScoreQuestion,
    check_answer,
    check_written,
    concatenate,
    most_bytes,
    read_tensors,
    write_question,
)

SLACK = 1e-3
"""Nats by which rounding may lift a log-probability above 0."""

Answer = dict[str, Tensor]


class ScorerTeacher(AskedTeacher):
    """Scores and writes through `tropd serve`. `most_tokens` is of a question, all rows together.

    Each question names the `fingerprint` of the weights, and a server with other weights refuses it.
    """

    most_topk = None

    def __init__(self, client: Client, served_name: str, *, fingerprint: str, most_tokens: int, **settings: Any):
        super().__init__(client, served_name, **settings)
        self._fingerprint, self._most_tokens = fingerprint, most_tokens

    def fingerprint(self) -> str:
        """Of its weights, the one that they have in this process."""
        return self._fingerprint

    def score(
        self,
        contexts: Sequence[list[int]],
        responses: Sequence[list[int]],
        scored: Sequence[list[bool]],
        *,
        pad_id: int,
        temperature: float = 1.0,
        rows_per_pass: int | None = None,
        topk: TopKRequest | None = None,
        keep_hidden: bool = False,
        passes: int = 0,
        endings: Endings = (),
    ) -> TeacherScores:
        """As `LocalTeacher.score`: one question for each of its passes.

        Raises:
            ConnectionError: no answer within the patience.
            ValueError: an answer that is refused, or what a server cannot be asked for.
        """
        if keep_hidden:
            raise ValueError("a served teacher does not provide whole distributions")
        count, step = sum(map(sum, scored)), rows_per_pass or max(len(contexts), 1)
        below = torch.full((count,), math.inf) if topk is None or topk.below is None else topk.below().float().cpu()
        questions, first = [], 0
        for start in range(0, len(contexts), step):
            rows = slice(start, start + step)
            tokens = slice(first, first + sum(map(sum, scored[rows])))
            questions.append(
                ScoreQuestion(
                    contexts=list(contexts[rows]),
                    responses=list(responses[rows]),
                    scored=list(scored[rows]),
                    below=below[tokens],
                    above=-math.inf if topk is None else topk.above,
                    k=0 if topk is None else topk.k,
                    vocab_limit=0 if topk is None else topk.vocab_limit,
                    pad_id=pad_id,
                    temperature=temperature,
                    endings=endings,
                )
            )
            first = tokens.stop
        answers = self._ask(questions)
        if topk is None:
            return self._scores(answers)
        logp, entropy = (concatenate(answers, name).to(self.device) for name in ("logp", "entropy"))
        wanted = topk.wanted(logp, entropy, slice(None))
        return self._scores([*self._with_topk(questions, answers, wanted.cpu())])

    def _with_topk(
        self, questions: Sequence[ScoreQuestion], answers: Sequence[Answer], wanted: Tensor
    ) -> Sequence[Answer]:
        """The answers with the top-k of the tokens in `wanted` [N] alone; what was not sent is asked for once more."""
        sizes = [len(question.below) for question in questions]
        parts = torch.split(wanted, sizes)
        lacking = [part.clone() for part in parts]
        for part, answer in zip(lacking, answers, strict=True):
            part[answer["topk_index"].long()] = False
        again = [
            replace(question, below=torch.where(part, math.inf, -math.inf), above=-math.inf)
            for question, part in zip(questions, lacking, strict=True)
            if part.any()
        ]
        more = iter(self._ask(again))
        found = []
        for answer, part, lacks in zip(answers, parts, lacking, strict=True):
            both = [answer, next(more)] if lacks.any() else [answer]
            index, ids, logp = (concatenate(both, name) for name in ("topk_index", "topk_ids", "topk_logp"))
            order = index.argsort()
            order = order[part[index[order].long()]]
            topk = {"topk_index": index[order], "topk_ids": ids[order], "topk_logp": logp[order]}
            found.append(answer | topk)
        return found

    def _scores(self, answers: Sequence[Answer]) -> TeacherScores:
        """The answers as one; places count from its first token."""
        firsts = [0, *itertools.accumulate(len(answer["logp"]) for answer in answers)]
        moved = [
            answer | {"topk_index": answer["topk_index"].long() + first}
            for answer, first in zip(answers, firsts, strict=False)
        ]
        logp, entropy, index, ids, topk_logp = (concatenate(moved, name).to(self.device) for name in ANSWER)
        return TeacherScores(logp, entropy, index, ids, topk_logp)

    def _ask(self, questions: Sequence[ScoreQuestion]) -> list[Answer]:
        for question in questions:
            if question.num_tokens > self._most_tokens:
                raise ValueError(
                    f"a micro-batch has {question.num_tokens} tokens, but the teacher's server accepts "
                    f"{self._most_tokens} at once. Lower teacher_batch_size, or start the server with --max_tokens "
                    f"{question.num_tokens} or more"
                )
        return self._ask_all(self._ask_one, questions, [question.num_tokens for question in questions])

    def _ask_one(self, question: ScoreQuestion) -> Answer:
        answer: Answer = self.client.ask(
            self._path(SCORE), write_question(question), most_bytes(question), read=read_tensors
        )
        try:
            check_answer(answer, question, SLACK)
        except ValueError as error:
            raise ServerRefused(f"the teacher gave {error}") from error
        return answer

    def _path(self, path: str) -> str:
        return f"{path}?model={quote(self._fingerprint, safe='')}"

    def sample(
        self,
        contexts: Sequence[list[int]],
        *,
        pad_id: int,
        eos_ids: Sequence[int],
        max_new_tokens: int,
        temperature: float,
        vocab_limit: int | None = None,
        draws: DrawAddress | None = None,
    ) -> list[list[int]]:
        """See `AskedTeacher`: all rows in one question, drawn as a teacher in this process draws them."""
        if not contexts:
            return []
        body = {
            "contexts": [list(context) for context in contexts],
            "pad_id": pad_id,
            "eos_ids": list(eos_ids),
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "vocab_limit": vocab_limit,
            "draws": None
            if draws is None
            else {"seed": draws.seed, "step": draws.step, "stream": draws.stream, "rows": list(draws.rows)},
        }
        most = 2**12 + len(contexts) * (max_new_tokens + 1) * 12
        answer = self.client.ask(self._path(WRITE), body, most)
        try:
            return check_written(answer, len(contexts), max_new_tokens)
        except ValueError as error:
            raise ServerRefused(f"the teacher gave {error}") from error
