"""What stops a run inside a step: failures, in sentences; numbers that are not finite; rollouts that collapse; prompts
that a model cannot read.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from ...messages import TOOLS, without_nulls
from ...teacher.local import TeacherScores
from ...teacher.names import Name, teacher_phrase
from .errors import NotFinite, TeacherFailed, guard
from .faults import checkpoint_phrase, kept_phrase


@dataclass(frozen=True)
class StepGuards:
    """What turns a failure in one step into a sentence."""

    moment: str  # what is being done, such as `step 3`
    step: int  # number of the step under way
    directory: str  # the run's output directory
    shards_teacher: bool  # does each process hold only a part of the teacher?
    memory: Callable[[str], AbstractContextManager[None]]  # `faults.enough_memory` for a kind of work
    autocast: Callable[[], AbstractContextManager[None]]  # the run's mixed precision

    def check_counts(self, scores: TeacherScores, num_tokens: int) -> None:
        """Refuse scores that cannot be matched with the tokens, before they are used.

        Raises:
            TeacherFailed: with both counts.
        """
        asked = scores.topk_index.numel()
        counts = {
            "logp": (len(scores.logp), num_tokens, "tokens"),
            "entropy": (len(scores.entropy), num_tokens, "tokens"),
            "topk_ids": (len(scores.topk_ids), asked, "tokens of its topk_index"),
            "topk_logp": (len(scores.topk_logp), asked, "tokens of its topk_index"),
        }
        if scores.states:
            counts["hidden"] = (sum(len(states.hidden) for states in scores.states), num_tokens, "tokens")
        for name, (given, wanted, of) in counts.items():
            if given != wanted:
                raise TeacherFailed(
                    f"the teacher gave {given} values of {name} for the {wanted} {of} of {self.moment}, so nothing was "
                    f"learned from them; {kept_phrase(self.moment, self.directory)}. A teacher must score every "
                    "requested token."
                )

    def teacher_failed_elsewhere(self) -> TeacherFailed:
        """What a process raises whose own teacher has answered."""
        return TeacherFailed(
            f"the teacher failed in {self.moment} on another process, which says why; nothing was learned from it, and "
            f"{kept_phrase(self.moment, self.directory)}."
        )


@guard
def finite_softmax(error: Exception, step: int, directory: str) -> NotFinite | None:
    """Explain PyTorch's refusal to sample from a softmax that is not finite: the student's weights have broken."""
    if not isinstance(error, RuntimeError) or "probability tensor contains" not in str(error):
        return None
    return NotFinite(
        f"the student's softmax is not finite in the rollout of step {step}: its weights are broken, or the last "
        f"step was too large; {checkpoint_phrase(directory)}. Lower the learning rate, or check the student."
    )


# ---------------------------------------------------------------------- numbers


def loss_not_finite(loss: float, step: int, directory: str) -> NotFinite:
    """What is raised instead of learning from a loss that is not finite: what is kept, and what to try."""
    ruled_out = (
        " Where the teacher rules tokens out (logits of -inf), a divergence over the whole vocabulary is infinite: "
        "then use a method without one, such as tropd, or opd."
    )
    return NotFinite(
        f"the loss of step {step} is {loss}, so the step was not taken; {checkpoint_phrase(directory)}. Lower "
        "the learning rate, or look at the rollouts." + (ruled_out if math.isinf(loss) else "")
    )


def gradient_not_finite(norm: float, step: int, directory: str) -> NotFinite:
    """The same for a gradient, which the optimiser would carry into every weight."""
    return NotFinite(
        f"the gradient norm of step {step} is {norm}, so the step was not taken; {checkpoint_phrase(directory)}. "
        "Lower the learning rate, or train in bf16 or float32."
    )


def scores_not_finite(num_tokens: float, step: int, directory: str, teacher: Name) -> NotFinite:
    """Likewise for a batch in which a teacher has no finite score for any student token; a few are left out."""
    return NotFinite(
        f"{teacher_phrase(teacher)} has no finite score for any of the {num_tokens:.0f} student tokens of step "
        f"{step}, so there is nothing to learn from; {checkpoint_phrase(directory)}. Look at the teacher's weights "
        "and precision (teacher_model_init_kwargs: {dtype: float32}); `tropd check` scores a few prompts."
    )


# ---------------------------------------------------------------------- rollouts


ENOUGH_ROLLOUTS = 16
"""So few say whether most of a student's rollouts end: of four, two may do so by chance."""

GUARD_STATE = ("steps_in_a_row", "best_ended_share", "recent", "guidance", "best_guided_share")
"""What a checkpoint holds of the collapse guard."""


class CollapseGuard:
    """Counts collapsed steps in a row.

    A step counts when its rollouts are empty or only repeat themselves, and also when they no longer end although
    most of them once did: before training, where that was looked at, or in earlier steps without teacher prefixes
    that together have 16 rollouts. Steps with prefixes are compared only with steps of the same α: the rest of a
    response ends sooner the longer its prefix is, so that fewer rollouts end as guidance is annealed. Rollouts that
    never ended within the budget are no collapse, for the budget may be short, unless most of them continue after the
    teacher's ending.

    Args:
        share: a step counts when at least this share of its rollouts collapsed or no longer end.
        patience: steps in a row; `None` never trips.
        ended_before: share of the student's own rollouts that ended before training; 0 where nobody looked.
    """

    def __init__(self, share: float, patience: int | None, ended_before: float = 0.0):
        self.share, self.patience = share, patience
        self.steps_in_a_row = 0
        self.best_ended_share = ended_before
        self.guidance = self.best_guided_share = 0.0
        self.recent: list[list[float]] = []  # share that ended, and rollouts; lists, as JSON has them
        self.unheeded_share = 0.0

    def observe(
        self,
        collapsed_share: float,
        ended_share: float | None = None,
        unheeded_share: float = 0.0,
        of_all: float | None = None,
        rollouts: int = ENOUGH_ROLLOUTS,
        guidance: float = 0.0,
    ) -> None:
        """Take in a step; one that says nothing about endings neither counts nor ends a row.

        Args:
            collapsed_share: of its rollouts.
            ended_share: of those with room to end; `None` where there are none.
            unheeded_share: rollouts that wrote an ending of the teacher's and continued after it.
            of_all: share of all its rollouts that ended; `ended_share` by default.
            rollouts: how many it has.
            guidance: α of the step.
        """
        if guidance != self.guidance:
            self.guidance, self.best_guided_share, self.recent = guidance, 0.0, []
        # The last steps together, until they have enough rollouts for their share to say something.
        self.recent.append([(ended_share if of_all is None else of_all) or 0.0, rollouts])
        while sum(count for _, count in self.recent[1:]) >= ENOUGH_ROLLOUTS:
            del self.recent[0]
        if (total := sum(count for _, count in self.recent)) >= ENOUGH_ROLLOUTS:
            pooled = sum(share * count for share, count in self.recent) / total
            if guidance:
                self.best_guided_share = max(self.best_guided_share, pooled)
            else:
                self.best_ended_share = max(self.best_ended_share, pooled)
        expected = max(self.best_ended_share, self.best_guided_share, unheeded_share) >= 0.5
        endless = ended_share is not None and expected and 1 - ended_share >= self.share
        if endless or collapsed_share >= self.share:
            self.steps_in_a_row += 1
            self.unheeded_share = max(self.unheeded_share, unheeded_share)
        elif ended_share is not None:
            self.steps_in_a_row, self.unheeded_share = 0, 0.0

    @property
    def tripped(self) -> bool:
        return self.patience is not None and self.steps_in_a_row >= self.patience

    def sentence(self, step: int, directory: str) -> str:
        advice = "lower the learning rate, or start from an earlier checkpoint"
        if self.unheeded_share >= 0.5:
            advice = (
                f"up to {self.unheeded_share:.0%} of a step's rollouts wrote the teacher's ending and continued after "
                "it, since the student stops elsewhere: train with ending one_action"
            )
        return (
            f"stopped at step {step}: in each of the last {self.steps_in_a_row} steps at least {self.share:.0%} of the "
            "rollouts were empty, only repeated themselves, or no longer ended. The checkpoint of this step is in "
            f"{directory}; {advice}. (collapse_share, collapse_patience)"
        )


# ---------------------------------------------------------------------- prompts


COLUMNS = ("prompt", "teacher_prompt", TOOLS)
"""What contexts are made of."""
TEMPLATE = 2048
"""Tokens that a chat template puts around a prompt, at most; more are met when their batch is."""


@dataclass(frozen=True)
class Reader:
    """Who reads contexts, and how far."""

    who: str  # `the student` or a teacher, as a sentence begins
    positions: int | None  # that it was made for; `None` where nobody says
    # tokens up to which its rotary embedding does not depend on the batch; `None` where it never does
    steady: int | None = None
    way_out: str = ""  # what else helps beyond those

    def check(self, contexts: Sequence[Sequence[int]], budget: int) -> None:
        """Refuse what the command line refuses before a run; a model with rotary positions would read on, wrongly.

        `budget` is `max_completion_length`.

        Raises:
            ValueError: with the lengths, and what to do.
        """
        if not all(contexts):
            raise ValueError(
                f"{self.who} is given a prompt without a token, and nothing would predict the first token of its "
                "response. Remove empty prompts from the data."
            )
        longest = max(map(len, contexts), default=0)
        if self.positions is not None and longest + budget > self.positions:
            why = (
                f"it was made for {self.positions} positions (max_position_embeddings) and cannot read beyond them. "
                + _what_fits(self.positions - longest)
            )
        elif self.steady is not None and longest + budget > self.steady:
            why = (
                f"beyond {self.steady} its rotary embedding (rope_type) depends on the longest row of a batch, so "
                "rollouts and scores would come from different models. "
                f"{_what_fits(self.steady - longest)}{self.way_out}"
            )
        else:
            return
        raise ValueError(
            f"a prompt has {longest} tokens for {self.who}, and max_completion_length is {budget}: "
            f"{longest + budget} together, but {why}"
        )


def _what_fits(room: int) -> str:
    fits = f"Set max_completion_length to at most {room}, or leave" if room > 0 else "Leave"
    return f"{fits} the longest prompts out of the data."


def doubtful_rows(data: Any, room: int) -> Iterator[list[dict[str, Any]]]:
    """Rows of data sets that may have too many tokens, or none, a thousand at a time.

    A token has at least a byte, so that most rows need no tokenizer. Streams, and data sets that compute their rows,
    are not read here: their rows are met with their batch. `room` is how many tokens a prompt may have.
    """
    if isinstance(data, Mapping | tuple) and not isinstance(data, Dataset):
        for part in data.values() if isinstance(data, Mapping) else data:
            yield from doubtful_rows(part, room)
    elif isinstance(data, Dataset) and data.format["type"] is None:
        for batch in data.iter(1000):
            columns = [map(without_nulls, values) if name in COLUMNS else values for name, values in batch.items()]
            rows = [dict(zip(batch, values, strict=True)) for values in zip(*columns, strict=True)]
            doubtful = [row for row in rows if not row.get("prompt") or _bytes(row) + TEMPLATE > room]
            if doubtful:
                yield doubtful


def _bytes(row: dict[str, Any]) -> int:
    """Bytes of the longer of the two prompts, and of the tools."""
    sizes = [len(json.dumps(row.get(name), ensure_ascii=False, default=str).encode()) for name in COLUMNS]
    return max(sizes[:2]) + sizes[2]
