"""What turns a failure inside a step into a sentence: memory that runs out, a teacher that fails, broken weights."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from ...teacher.local import TeacherScores
from ..distributed.ranks import Ranks
from .faults import check_score_counts, teacher_asked, teacher_failed_elsewhere
from .finite import finite_softmax
from .memory import EVALUATED_ROWS, TRAINED_ROWS, WRITING, enough_memory


@dataclass(frozen=True)
class StepGuards:
    """Context managers for the parts of one step.

    Attributes:
        moment: what is being done, such as `step 3`.
        step: number of the step under way.
        args: the run's configuration.
        trains: do as many rows pass through the student at once as in training?
        ranks: to stop every process where one fails.
        shards_teacher: does each process hold only a part of the teacher?
        autocast: the run's mixed precision.
    """

    moment: str
    step: int
    args: Any
    trains: bool
    ranks: Ranks
    shards_teacher: bool
    autocast: Callable[[], AbstractContextManager[None]]

    @property
    def directory(self) -> str:
        """The run's output directory."""
        return str(self.args.output_dir)

    def memory(self, work: str) -> AbstractContextManager[None]:
        """Inside, the student writes or is scored; a lack of memory is a sentence that says what to lower."""
        rows = TRAINED_ROWS if self.trains else EVALUATED_ROWS
        return enough_memory(work, lambda: self.moment, self.args, rows)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Inside, the student writes."""
        with self.memory(WRITING), finite_softmax(self.step, self.directory):
            yield

    @contextmanager
    def asking_teacher(self, num_tokens: int) -> Iterator[Callable[[TeacherScores], None]]:
        """Inside, the teacher scores `num_tokens`; yields what refuses another number of scores.

        Where it fails on one rank, every rank leaves the block with a sentence.
        """
        # A sharded teacher meets the other ranks in its forward pass, where they would not notice.
        together = (
            nullcontext()
            if self.shards_teacher
            else self.ranks.failing_together(lambda: teacher_failed_elsewhere(self.moment, self.directory))
        )
        with together, teacher_asked(self.moment, self.directory):
            yield lambda scores: check_score_counts(scores, num_tokens, self.moment, self.directory)
