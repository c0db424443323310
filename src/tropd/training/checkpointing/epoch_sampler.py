"""Data order with an address: which prompts an epoch visits, and when, depends on the seed and the epoch alone."""

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import Sampler

EPOCH_STRIDE = 1_000_003
"""Distance between the seeds of two epochs; the first epoch's is the run's own, as in TRL."""


class EpochAddressedSampler(Sampler[int]):
    """TRL's `RepeatSampler`, reseeded from (seed, epoch) whenever an epoch starts.

    TRL's own continues one generator through the epochs, so a run resumed in the second epoch would see the first
    one's order again. `epoch` is called at the start of each epoch, for its number.
    """

    def __init__(self, sampler: Any, epoch: Callable[[], int]):
        self.sampler, self.epoch = sampler, epoch

    def __iter__(self) -> Iterator[int]:
        if self.sampler.shuffle:
            self.sampler.generator.manual_seed((self.sampler.seed or 0) + EPOCH_STRIDE * self.epoch())
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)
