"""The interface of a teacher, wherever it computes. Nothing downstream depends on where that is."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from ..objective.endings import Endings
from ..objective.randomness import DrawAddress
from .local import TeacherScores, TopKRequest

Fingerprint = str | list[float]
"""Identifies a teacher: a digest of its weights, or log-probabilities (nats) of a fixed text."""


class Teacher(Protocol):
    """Scores the student's responses, and writes the responses from which prefixes are cut.

    `LocalTeacher` computes in this process, `ServedTeacher` asks vLLM, `ScorerTeacher` asks `tropd serve`.
    """

    @property
    def name(self) -> str:
        """Name of the model; empty if unknown."""

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
        """The largest top-k it supports; `None`: any."""

    @property
    def context_length(self) -> int | None:
        """Maximum tokens of prompt and response together; `None` if unknown."""

    def fingerprint(self) -> Fingerprint:
        """Fingerprint that detects a different model in its place."""

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
