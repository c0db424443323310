"""What a run needs of a teacher, wherever it computes. Nothing downstream knows where that is."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from ..objective.endings import Endings
from ..objective.randomness import DrawAddress
from .local import TeacherScores, TopKRequest

Fingerprint = str | list[float]
"""What tells a teacher from another: a digest of its weights, or log-probabilities (nats) of a fixed text."""


class Teacher(Protocol):
    """Scores what the student wrote, and writes responses where prefixes come from.

    `LocalTeacher` computes in this process, `ServedTeacher` asks vLLM, `ScorerTeacher` asks `tropd serve`.
    """

    @property
    def name(self) -> str:
        """What the model is called; empty where nobody says."""

    @property
    def model(self) -> Any | None:
        """The Transformers model that reads and writes in this process; `None` where another engine does."""

    @property
    def generation_config(self) -> Any:
        """Its generation settings, of which the endings are read; may be `None`."""

    @property
    def vocab_size(self) -> int:
        """The ids that it can score and read are those below."""

    @property
    def device(self) -> torch.device:
        """Where its scores are."""

    @property
    def most_topk(self) -> int | None:
        """The largest k that it answers; `None`: any."""

    @property
    def context_length(self) -> int | None:
        """Tokens of prompt and response together that it can read; `None` where nobody says."""

    def fingerprint(self) -> Fingerprint:
        """By which another model in its place is told."""

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
        """As `LocalTeacher.score`."""

    def write(
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
        """As `LocalTeacher.write`."""
