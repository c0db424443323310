"""Sums and collections over data-parallel ranks; on one process, the values themselves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor


class Ranks:
    """All ranks of a run, through accelerate."""

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator

    def sum(self, local: Tensor) -> Tensor:
        """Elementwise sum of every rank's tensor, on the CPU."""
        return self._accelerator.reduce(local.to(self._accelerator.device), reduction="sum").cpu()

    def max(self, local: Tensor) -> Tensor:
        """Elementwise maximum of every rank's tensor [n], on the CPU."""
        gathered = self._accelerator.gather(local.to(self._accelerator.device))
        return gathered.view(-1, local.numel()).amax(0).cpu()

    def gather_ragged(self, local: Tensor) -> Tensor:
        """All ranks' values of a one-dimensional tensor whose length differs from rank to rank."""
        count = self._accelerator.gather(torch.tensor([local.numel()], device=local.device))
        padded = self._accelerator.pad_across_processes(local, dim=0)
        gathered = self._accelerator.gather(padded).view(len(count), -1)
        return torch.cat([row[:n] for row, n in zip(gathered, count.tolist(), strict=True)])

    @contextmanager
    def failing_together(self, elsewhere: Callable[[], Exception]) -> Iterator[None]:
        """Leave the block with an exception on every rank where one rank does; `elsewhere()` on the others.

        The block must not hold a collective operation.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        try:
            failed = int(self.max(torch.tensor([failure is not None]).int())[0])
        except Exception:  # a device that has failed cannot tell the others
            if failure is None:
                raise
        if failure is not None:
            raise failure
        if failed:
            raise elsewhere()
