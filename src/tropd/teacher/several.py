"""Several teachers, each for its own prompts: a specialist for every domain.

N counts scored response tokens, row after row; M ≤ N of them are asked for their teacher's top-k.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .local import LocalTeacher, TeacherScores, TopKRequest


class SeveralTeachers(LocalTeacher):
    """Scores each row with the teacher whose prompt it is.

    Args:
        teachers: by name; all must share the student's token ids.
        owner_of: the name of a row's teacher, told its context as token ids.
    """

    def __init__(self, teachers: Mapping[str, LocalTeacher], owner_of: Callable[[Sequence[int]], str]):
        self.teachers, self.owner_of = dict(teachers), owner_of
        self.model = next(iter(self.teachers.values())).model

    @property
    def vocab_size(self) -> int:
        """The ids that every teacher can score and read."""
        return min(teacher.vocab_size for teacher in self.teachers.values())

    @torch.no_grad()
    def score(
        self,
        contexts: Sequence[list[int]],
        responses: Sequence[list[int]],
        scored: Sequence[list[bool]],
        *,
        topk: TopKRequest | None = None,
        keep_hidden: bool = False,
        **options: Any,
    ) -> TeacherScores:
        """As `LocalTeacher.score`; hidden states cannot be kept, since each teacher has a head of its own."""
        if keep_hidden:
            raise ValueError(
                "this method reads the teacher's whole distribution for every token, which several teachers cannot "
                "give at once. Choose another method, or one teacher."
            )
        ends = torch.tensor([0, *(sum(marks) for marks in scored)]).cumsum(0).tolist()
        parts: list[tuple[Tensor, TeacherScores]] = []
        for name, rows in self._rows_of(contexts).items():
            index = torch.cat([torch.arange(ends[row], ends[row + 1]) for row in rows]).to(self.device)
            scores = self.teachers[name].score(
                [contexts[row] for row in rows],
                [responses[row] for row in rows],
                [scored[row] for row in rows],
                topk=_of_these_tokens(topk, index),
                **options,
            )
            parts.append((index, scores))
        return _in_order(parts)

    def write(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        raise ValueError(
            "several teachers write no prefixes while training; give every row a teacher_response, which "
            "`tropd generate` writes."
        )

    def _rows_of(self, contexts: Sequence[list[int]]) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for row, context in enumerate(contexts):
            rows.setdefault(self.owner_of(context), []).append(row)
        return rows


def _of_these_tokens(topk: TopKRequest | None, index: Tensor) -> TopKRequest | None:
    """The request as one teacher is asked it, whose tokens are those at `index` among the N."""
    if topk is None:
        return None
    return replace(topk, wanted=lambda logp, entropy, tokens: topk.wanted(logp, entropy, index[tokens]))


def _in_order(parts: Sequence[tuple[Tensor, TeacherScores]]) -> TeacherScores:
    """Scores of several teachers as if one had given them, in the order of the N tokens."""
    index = torch.cat([index for index, _ in parts])
    back = index.argsort()
    topk_index = torch.cat([index[scores.topk_index] for index, scores in parts])
    by_token = topk_index.argsort()
    return TeacherScores(
        logp=torch.cat([scores.logp for _, scores in parts])[back],
        entropy=torch.cat([scores.entropy for _, scores in parts])[back],
        topk_index=topk_index[by_token],
        topk_ids=torch.cat([scores.topk_ids for _, scores in parts])[by_token],
        topk_logp=torch.cat([scores.topk_logp for _, scores in parts])[by_token],
    )
