"""Rollouts that collapse: when a run stops because nothing is left to learn from."""

ENOUGH_ROLLOUTS = 16
"""So few say whether most of a student's rollouts end: of four, two may do so by chance."""


class CollapseGuard:
    """Counts collapsed steps in a row.

    A step counts when its rollouts are empty or only repeat themselves, and also when they no longer end although
    most of them once did: before training, where that was looked at, or in the last steps that together have 16
    rollouts, teacher prefixes and all. Rollouts that never ended within the budget are no collapse: the budget may be
    short.

    Args:
        share: a step counts when at least this share of its rollouts collapsed or no longer end.
        patience: steps in a row; `None` never trips.
        ended_before: share of the student's own rollouts that ended before training; 0 where nobody looked.
    """

    def __init__(self, share: float, patience: int | None, ended_before: float = 0.0):
        self.share, self.patience = share, patience
        self.steps_in_a_row = 0
        self.best_ended_share = ended_before
        self.recent: list[tuple[float, int]] = []
        self.unheeded_share = 0.0

    def observe(
        self,
        collapsed_share: float,
        ended_share: float | None = None,
        unheeded_share: float = 0.0,
        of_all: float | None = None,
        rollouts: int = ENOUGH_ROLLOUTS,
    ) -> None:
        """Take in a step; one that says nothing of endings neither counts nor breaks a row.

        Args:
            collapsed_share: of its rollouts.
            ended_share: of those with room to end; `None` where there are none.
            unheeded_share: rollouts that wrote an ending of the teacher's and went on behind it.
            of_all: share of all its rollouts that ended; `ended_share` by default.
            rollouts: how many it has.
        """
        self._remember((ended_share if of_all is None else of_all) or 0.0, rollouts)
        endless = ended_share is not None and self.best_ended_share >= 0.5 and 1 - ended_share >= self.share
        if endless or collapsed_share >= self.share:
            self.steps_in_a_row += 1
            self.unheeded_share = max(self.unheeded_share, unheeded_share)
        elif ended_share is not None:
            self.steps_in_a_row, self.unheeded_share = 0, 0.0

    def _remember(self, ended_share: float, rollouts: int) -> None:
        """Pool the last steps until they have enough rollouts for their share to say something."""
        self.recent.append((ended_share, rollouts))
        while sum(count for _, count in self.recent[1:]) >= ENOUGH_ROLLOUTS:
            del self.recent[0]
        total = sum(count for _, count in self.recent)
        if total >= ENOUGH_ROLLOUTS:
            pooled = sum(share * count for share, count in self.recent) / total
            self.best_ended_share = max(self.best_ended_share, pooled)

    @property
    def tripped(self) -> bool:
        return self.patience is not None and self.steps_in_a_row >= self.patience

    def sentence(self, step: int, directory: str) -> str:
        advice = "lower the learning rate, or start from an earlier checkpoint"
        if self.unheeded_share >= 0.5:
            advice = (
                f"up to {self.unheeded_share:.0%} of a step's rollouts wrote the teacher's ending and went on behind "
                "it, since the student stops elsewhere: train with ending one_action"
            )
        return (
            f"stopped at step {step}: in each of the last {self.steps_in_a_row} steps at least {self.share:.0%} of the "
            "rollouts were empty, only repeated themselves, or no longer ended. The checkpoint of this step is in "
            f"{directory}; {advice}. (collapse_share, collapse_patience)"
        )
