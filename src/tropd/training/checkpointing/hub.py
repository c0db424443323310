"""`push_to_hub`: asked of the Hub before anything is loaded, and done when the model is whole on disk."""

import copy
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from ..guards.errors import TrainingStopped
from ..guards.faults import in_a_line
from .checkpoints import room_on_disk

logger = logging.getLogger(__name__)


class TokenStaysHere:
    """A configuration whose tokens are not in its pickle, `training_args.bin`, which is kept and pushed; copies in this
    process have them."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: None if name.endswith("_token") else value for name, value in vars(self).items()}

    def __copy__(self) -> Any:
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = memo[id(self)] = object.__new__(type(self))
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin


class NotPushed(TrainingStopped):
    """The Hub did not accept the model, which is whole on disk."""


def check_hub(args: Any) -> None:
    """Ask the Hub whose token this is, where the run wants to push; the first process alone.

    Raises:
        ValueError: there is no network, no token, or none that the Hub knows.
    """
    if args.push_to_hub and int(os.environ.get("RANK", "0")) == 0:
        from huggingface_hub import HfApi

        with hub_guard():
            HfApi().whoami(token=args.hub_token)


@contextmanager
def hub_guard(asked_by: str = "push_to_hub is True, but ") -> Iterator[None]:
    """Explain in a sentence, which begins with `asked_by`, that the Hub cannot be reached, or refuses.

    Raises:
        ValueError: with what was raised, and what to type.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{asked_by}the Hub cannot be written to ({in_a_line(error)}). Check that there is a network "
            "(HF_HUB_OFFLINE unset) and a token that may write (`hf auth login`, or hub_token) to hub_model_id; or set "
            "push_to_hub: false and upload the model later: `hf upload NAME output_dir`."
        ) from error


class Pushes:
    """Pushes during a run: they finish in the background, where the host does not check whether they succeeded."""

    def __init__(self) -> None:
        self._begun: dict[Any, int] = {}

    @contextmanager
    def of_step(self, step: int, trainer: Any) -> Iterator[None]:
        """Begin a step's push inside; warn of earlier ones that have failed.

        Raises:
            CheckpointNotWritten: there is no room for the copy of the model that is pushed.
        """
        self.tell_failed()
        with room_on_disk(trainer.args.output_dir):
            yield
        for job in getattr(getattr(trainer, "push_in_progress", None), "jobs", ()):
            self._begun.setdefault(job, step)

    def tell_failed(self) -> None:
        """Warn, once each, of pushes that the Hub has not accepted."""
        for job in [job for job in self._begun if job.done()]:
            step = self._begun.pop(job)
            if (error := job.exception()) is not None:
                logger.warning(
                    "the push of step %d to the Hub failed (%s); the run continues, its checkpoints are on disk, and "
                    "the next push uploads the newer model.",
                    step,
                    in_a_line(error),
                )


class PushWhenWhole(TrainerCallback):
    """Pushes the final model when its last file is in the output directory."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.pushes.tell_failed()
        if not (args.push_to_hub and args.save_final_model) or self.trainer.stopped_by_signal:
            return
        try:
            self.trainer.push_to_hub(commit_message="Model save", revision=args.hub_revision)
        except Exception as error:
            raise NotPushed(
                f"the final model is in {args.output_dir}, but it could not be pushed to the Hub "
                f"({in_a_line(error)}). Upload it "
                f"when the Hub can be reached: `hf upload NAME {args.output_dir} --exclude 'checkpoint-*'`."
            ) from error
