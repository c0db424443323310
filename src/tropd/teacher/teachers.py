"""The teachers of a run: each row is scored by its own teacher; results are in the order of the rows.

N counts scored response tokens, row after row, of all teachers.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .context import TeacherContexts
from .local import TeacherScores, TopKRequest
from .names import COLUMN, Name, rows_by_name, why_unknown
from .teacher import Teacher


@dataclass(frozen=True)
class Teachers:
    """The teachers of a run, and the rows of each. Created with the trainer.

    Attributes:
        by_name: the teachers; `{None: teacher}` where there is one.
        contexts: what each of them sees.
        most: the largest of all processes' numbers, elementwise; given where the teachers are sharded and every process
            must make the same passes of each.
    """

    by_name: dict[Name, Teacher]
    contexts: dict[Name, TeacherContexts]
    most: Callable[[Tensor], Tensor] | None = None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names that a row may choose from; none where there is one teacher without a name."""
        return tuple(name for name in self.by_name if name is not None)

    @property
    def only(self) -> Teacher:
        """The teacher, where there is one."""
        if len(self.by_name) > 1:
            raise AttributeError(f"there are several teachers ({', '.join(self.names)}); select one by name.")
        return next(iter(self.by_name.values()))

    def name_for(self, row: dict[str, Any]) -> Name:
        """The name of a row's teacher.

        Raises:
            ValueError: the row names none, or one that is not there.
        """
        if None in self.by_name:
            return None
        why = why_unknown(row.get(COLUMN), self.names)
        if why is not None:
            raise ValueError(f"a row {why} Its prompt is {row.get('prompt')!r:.60}.")
        return str(row[COLUMN])

    def contexts_for(self, rows: Sequence[dict[str, Any]], prompt_ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """What each row's teacher sees of it; see `TeacherContexts.of`."""
        return [
            self.contexts[self.name_for(row)].of([row], [ids])[0] for row, ids in zip(rows, prompt_ids, strict=True)
        ]

    @property
    def most_topk(self) -> int | None:
        """The largest k that every teacher answers; `None`: any."""
        known = [most for teacher in self.by_name.values() if (most := teacher.most_topk) is not None]
        return min(known, default=None)

    def score(
        self,
        names: Sequence[Name],
        contexts: Sequence[list[int]],
        responses: Sequence[list[int]],
        scored: Sequence[list[bool]],
        *,
        topk: TopKRequest | None = None,
        rows_per_pass: int | None = None,
        **settings: Any,
    ) -> TeacherScores:
        """Each teacher's scores of its own rows, put together again.

        `names` has each row's teacher; the other arguments are those of `LocalTeacher.score`.
        """
        settings["rows_per_pass"] = rows_per_pass
        if len(self.by_name) == 1:
            (teacher,) = self.by_name.values()
            return teacher.score(contexts, responses, scored, topk=topk, **settings)
        rows_of = rows_by_name(names)
        passes = self._passes(rows_of, rows_per_pass)
        tokens = [sum(marks) for marks in scored]
        parts = []
        for name, teacher in self.by_name.items():
            rows = rows_of.get(name, [])
            if not rows and not passes[name]:
                continue
            places = _places(rows, tokens).to(teacher.device)
            with naming(name):
                scores = teacher.score(
                    *([column[row] for row in rows] for column in (contexts, responses, scored)),  # type: ignore[arg-type]
                    topk=_request_among(places, topk),
                    passes=passes[name],
                    **settings,
                )
                counts = len(scores.logp), len(scores.entropy)
                if counts != (len(places), len(places)):
                    raise ValueError(f"it gave {counts[0]} scores and {counts[1]} entropies for {len(places)} tokens")
                parts.append((places, scores))
        return join_scores(parts)

    def _passes(self, rows_of: dict[Name, list[int]], rows_per_pass: int | None) -> dict[Name, int]:
        """How many passes each teacher makes, of all processes the most where they must keep step."""
        counts = [len(rows_of.get(name, [])) for name in self.by_name]
        passes = torch.tensor([math.ceil(count / (rows_per_pass or max(count, 1))) for count in counts])
        return dict(zip(self.by_name, (self.most(passes) if self.most else passes).tolist(), strict=True))


def join_scores(parts: Sequence[tuple[Tensor, TeacherScores]]) -> TeacherScores:
    """The scores of tokens at `places` [n], part by part, as one in the order of the tokens."""
    order = torch.cat([places for places, _ in parts]).argsort()
    topk_index = torch.cat([places[scores.topk_index] for places, scores in parts])
    topk_order = topk_index.argsort()

    def merge(name: str, order: Tensor) -> Tensor:
        return torch.cat([getattr(scores, name) for _, scores in parts])[order]

    return TeacherScores(
        merge("logp", order),
        merge("entropy", order),
        topk_index[topk_order],
        merge("topk_ids", topk_order),
        merge("topk_logp", topk_order),
        tuple(replace(states, index=places[states.index]) for places, scores in parts for states in scores.states),
    )


@contextmanager
def naming(name: Name) -> Iterator[None]:
    """Inside, an exception is marked with the teacher that it comes from."""
    try:
        yield
    except Exception as error:
        if name is not None:
            error.add_note(f"teacher {name!r}")
        raise


def _places(rows: Sequence[int], tokens: Sequence[int]) -> Tensor:
    """Where the tokens of `rows` are among all N."""
    bounds = [0, *itertools.accumulate(tokens)]
    nothing = torch.empty(0, dtype=torch.long)
    return torch.cat([nothing, *(torch.arange(bounds[row], bounds[row + 1]) for row in rows)])


def _request_among(places: Tensor, topk: TopKRequest | None) -> TopKRequest | None:
    """The request of all tokens as one teacher reads it, whose own tokens are those at `places`."""
    if topk is None:
        return None
    below = topk.below
    return replace(
        topk,
        wanted=lambda logp, entropy, tokens: topk.wanted(logp, entropy, places[tokens]),
        below=None if below is None else lambda: below()[places],
    )
