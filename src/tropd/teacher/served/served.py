"""A teacher behind a server: vLLM is asked for each token's log-probability and, where it is read, for the top-k.

One row a question, many at once, so that a bad row fails alone and the server fills its batches itself. Answers are put
together by the rows' numbers, so the order in which they come changes nothing.

N counts scored response tokens, row after row; M ≤ N of them are asked for the teacher's top-k.
"""

import logging
import math
import threading
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ...models.sampling import until_eos
from ...objective.endings import Endings
from ...objective.randomness import DrawAddress
from ..local import TeacherScores, TopKRequest
from .asked import AskedTeacher
from .http import Ask, Client, ServerRefused
from .wire import (
    COMPLETIONS,
    Entries,
    Question,
    read_scores,
    read_written,
    scoring_question,
    writing_request,
)

logger = logging.getLogger(__name__)

SAME = 0.05
"""Mean difference, nats, up to which a fixed text's log-probabilities are taken for one model's. A bf16 server lay
0.036 from a float32 one of the same weights."""

LARGEST_K_TRIED = 128
"""The server's limit of log-probabilities a token is not looked for beyond this."""


@dataclass(frozen=True)
class _Row:
    """One response to score."""

    ids: list[int]  # context and response, up to the last token that is read
    places: list[int]  # of the scored tokens in `ids`
    unread: int  # scored tokens from the first id on that the teacher does not have
    first: int  # number of its first scored token among the N

    @property
    def count(self) -> int:
        return len(self.places) + self.unread


@dataclass(frozen=True)
class _Scored:
    """Of one row: log-probabilities, and of the tokens at `index` [m] (among the N) the top-k, ids and log-probs."""

    logp: list[float]
    index: torch.Tensor
    topk_ids: torch.Tensor
    topk_logp: torch.Tensor


class ServedTeacher(AskedTeacher):
    """Scores and writes through vLLM's `/v1/completions`; if `is_lean`, scores through the endpoint without texts.

    It is known again by its scores of `fixed_text`, token ids.
    """

    def __init__(self, client: Client, served_name: str, *, fixed_text: Sequence[int], is_lean: bool, **settings: Any):
        super().__init__(client, served_name, **settings)
        self._fixed_text, self._is_lean = list(fixed_text), is_lean
        self._dividing = threading.Lock()
        self._fingerprint = self._read_fingerprint(client.ask)
        client.check_connection = self._check_same
        client.close()  # what was opened before there was anything to compare

    # ------------------------------------------------------------------ which model it is

    def fingerprint(self) -> list[float]:
        """Log-probabilities of a fixed text, nats, as they were when the teacher was first asked."""
        return self._fingerprint

    def _read_fingerprint(self, ask: Ask) -> list[float]:
        ids, places = self._fixed_text, range(1, len(self._fixed_text))
        answer = ask(*self._question(ids, 0))
        return [entries[ids[place]] for place, entries in zip(places, read_scores(answer, ids, places, 0), strict=True)]

    def _check_same(self, ask: Ask) -> None:
        """Refuse a server that was restarted with another model, before a number of it is taken."""
        if not is_same_model(self._fingerprint, self._read_fingerprint(ask)):
            raise ServerRefused(
                f"the server now has a different model than the {self.served_name!r} of the beginning of this run: the "
                "log-probabilities of a fixed text differ. Serve the earlier model again"
            )

    @cached_property
    def most_topk(self) -> int | None:
        """The largest k that the server answers (its `--max-logprobs`); `None`: at least `LARGEST_K_TRIED`."""
        most = min(LARGEST_K_TRIED, self.vocab_size)
        return None if self._answers(most) else bisect(range(1, most), False, key=lambda k: not self._answers(k))

    def _answers(self, k: int) -> bool:
        ids = self._fixed_text[:2]
        try:
            self.client.ask(*self._question(ids, k))
        except ServerRefused as refusal:
            if refusal.status != 400:
                raise
            return False
        return True

    # ------------------------------------------------------------------ scores

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
        """As `LocalTeacher.score`; entropies are NaN, since a server tells none.

        Raises:
            ConnectionError: no answer within the patience.
            ValueError: an answer that is refused, or what a server cannot be asked for.
        """
        if keep_hidden:
            raise ValueError("a served teacher does not provide whole distributions")
        if temperature != 1.0:
            raise ValueError(f"temperature is {temperature}, but the server always scores at temperature 1")
        rows, first = [], 0
        for context, response, marks in zip(contexts, responses, scored, strict=True):
            rows.append(self._row(context, response, marks, first))
            first += rows[-1].count
        found = self._ask_all(lambda row: self._score_row(row, topk, endings), rows, [len(row.ids) for row in rows])
        logp = torch.tensor([value for one in found for value in one.logp], dtype=torch.float32, device=self.device)
        k = 0 if topk is None else topk.k
        return TeacherScores(
            logp,
            torch.full_like(logp, math.nan),
            torch.cat([torch.empty(0, dtype=torch.long), *(one.index for one in found)]).to(self.device),
            torch.cat([torch.empty(0, k, dtype=torch.int32), *(one.topk_ids for one in found)]).to(self.device),
            torch.cat([torch.empty(0, k), *(one.topk_logp for one in found)]).to(self.device),
        )

    def _row(self, context: Sequence[int], response: Sequence[int], marks: Sequence[bool], first: int) -> _Row:
        ids = [*context, *response]
        readable = next((place for place, token in enumerate(ids) if token >= self.vocab_size), len(ids))
        wanted = [len(context) + place for place, mark in enumerate(marks) if mark]
        places = [place for place in wanted if place < readable]
        ids = ids[: places[-1] + 1] if places else []
        if self.context_length is not None and len(ids) > self.context_length:
            raise ValueError(
                f"a row has {len(ids)} tokens, but the teacher's server reads {self.context_length}, since it also "
                f"generates one token. Start it with --max-model-len {len(ids) + 1} or more"
            )
        return _Row(ids, places, len(wanted) - len(places), first)

    def _score_row(self, row: _Row, topk: TopKRequest | None, endings: Endings) -> _Scored:
        """One row's scores. Which of its tokens need a top-k is known once the row is."""
        endings = endings if len(endings) > 1 else ()
        k = 0 if topk is None else topk.k
        limit = 0 if topk is None else min(topk.vocab_limit, self.vocab_size)
        entries, tops = self._ask_row(row, k, limit, endings)
        logp = [self._token_logp(row.ids, place, one, endings) for place, one in zip(row.places, entries, strict=True)]
        logp += [-math.inf] * row.unread
        if topk is None or not logp:
            return _Scored(logp, torch.empty(0, dtype=torch.long), torch.empty(0, k).int(), torch.empty(0, k))
        scores = torch.tensor(logp, device=self.device)
        with self._dividing:
            place = slice(row.first, row.first + row.count)
            wanted = topk.wanted(scores, torch.full_like(scores, math.nan), place).nonzero().squeeze(-1).cpu()
        nothing = [(token, -math.inf) for token in range(k)]
        chosen = [tops[i] if i < len(tops) and len(tops[i]) == k else nothing for i in wanted.tolist()]
        return _Scored(
            logp,
            wanted + row.first,
            torch.tensor([[token for token, _ in top] for top in chosen], dtype=torch.int32).view(-1, k),
            torch.tensor([[value for _, value in top] for top in chosen], dtype=torch.float32).view(-1, k),
        )

    def _ask_row(
        self, row: _Row, k: int, limit: int, endings: Endings
    ) -> tuple[list[Entries], list[list[tuple[int, float]]]]:
        """What the server says of each scored token, and its k likeliest events; fewer where it lists no more."""
        if not row.places:
            return [], []
        asked = k + max(len(endings) - 1, 0) if k else 0
        entries = self._ask_scores(row.ids, row.places, asked)
        while k:
            sampled = [row.ids[place] for place in row.places]
            pairs = zip(entries, sampled, strict=True)
            tops = [likeliest(one, token, asked, k, limit, endings) for one, token in pairs]
            lacking = k - min(map(len, tops))
            if not lacking:
                return entries, tops
            # Ids that the student does not have were among them. The teacher has as many more, as k are shared.
            if self.most_topk is not None and asked + lacking > self.most_topk:
                logger.warning(
                    "Some of the teacher's %d likeliest tokens are not in the student's vocabulary, and its server "
                    "lists no more: they are excluded. Start it with a larger --max-logprobs.",
                    asked,
                )
                return entries, tops
            asked += lacking
            entries = self._ask_scores(row.ids, row.places, asked)
        return entries, []

    def _ask_scores(self, ids: list[int], places: Sequence[int], k: int) -> list[Entries]:
        try:
            answer = self.client.ask(*self._question(ids, k))
        except ServerRefused as refusal:
            if refusal.status == 400 and k and (most := self.most_topk) is not None and k > most:
                raise ServerRefused(
                    f"the teacher's server lists at most {most} log-probabilities per token, but {k} are needed. Start "
                    f"it with --max-logprobs {k}, or lower fkl_top_k by {k - most}",
                    400,
                ) from refusal
            raise
        return read_scores(answer, ids, places, k)

    def _question(self, ids: Sequence[int], k: int) -> Question:
        return scoring_question(self.served_name, ids, k, self._is_lean)

    def _token_logp(self, ids: list[int], place: int, entries: Entries, endings: Endings) -> float:
        """The token's log-probability; an ending's is that of all endings, and those not listed are asked for."""
        if ids[place] not in endings:
            return entries[ids[place]]
        values = []
        for ending in endings:
            if ending not in entries and ending < self.vocab_size:
                (other,) = self._ask_scores([*ids[:place], ending], [place], 0)
                values.append(other[ending])
            else:
                values.append(entries.get(ending, -math.inf))
        return add_logps(values)

    # ------------------------------------------------------------------ responses

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
        **reshaping: Any,
    ) -> list[list[int]]:
        """See `AskedTeacher`, and for `reshaping` `models.sampling.sample`: the server draws with a seed for each row.

        A response is cut before the first id of `vocab_limit` or more, and where the server's context ends.
        """
        ends, limit = [i for i in eos_ids if i < self.vocab_size], vocab_limit or self.vocab_size
        seeds = None if draws is None else draws.seeds()

        def ask(number: int) -> list[int]:
            context = contexts[number]
            room = max_new_tokens
            if self.context_length is not None:
                room = min(room, self.context_length + 1 - len(context))
            if room < 1:
                raise ValueError(
                    f"a prompt has {len(context)} tokens, but the server reads at most {self.context_length}"
                )
            request = writing_request(
                self.served_name,
                context,
                max_new_tokens=room,
                temperature=temperature,
                stop_ids=ends,
                seed=None if seeds is None else seeds[number],
                **reshaping,
            )
            written = read_written(self.client.ask(COMPLETIONS, request, 2**16 + room * 100), room)
            written = written[: len(until_eos(written, eos_ids)) + 1]
            return written[: next((n for n, token in enumerate(written) if token >= limit), len(written))]

        return self._ask_all(ask, range(len(contexts)), [len(context) for context in contexts])


def is_same_model(before: Sequence[float], now: Sequence[float]) -> bool:
    """Are these log-probabilities of a fixed text one model's?"""
    if len(before) != len(now):
        return False
    apart = sum(0.0 if a == b else abs(a - b) for a, b in zip(before, now, strict=True)) / max(len(now), 1)
    return apart <= SAME


def likeliest(
    entries: Entries, sampled: int, asked: int, k: int, limit: int, endings: Endings
) -> list[tuple[int, float]]:
    """The k likeliest events of one token that the student has, too; ties by id. Fewer, where fewer are listed.

    >>> likeliest({7: -3.0, 2: -0.5, 9: -1.0, 4: -1.0}, sampled=7, asked=3, k=3, limit=9, endings=())
    [(2, -0.5), (4, -1.0)]

    Args:
        entries: the `asked` likeliest, and `sampled` where it is not among them.
        sampled: the token itself.
        asked: see there.
        k: how many.
        limit: ids from here on are not the student's.
        endings: ids that are one event, by the first of them; those that are not listed count as impossible.
    """
    listed = {token for token in entries if token != sampled or len(entries) <= asked}
    events = {token: entries[token] for token in listed if token < limit and token not in endings}
    ends = [entries[ending] for ending in endings if ending in entries]
    if any(ending in listed for ending in endings):
        events[endings[0]] = add_logps(ends)
    return sorted(events.items(), key=lambda event: (-event[1], event[0]))[:k]


def add_logps(values: Sequence[float]) -> float:
    """log Σ exp.

    >>> round(add_logps([math.log(0.25), math.log(0.5), -math.inf]), 6) == round(math.log(0.75), 6)
    True
    """
    most = max(values, default=-math.inf)
    return most if most == -math.inf else most + math.log(sum(math.exp(value - most) for value in values))
