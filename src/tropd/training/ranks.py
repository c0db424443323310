"""Sums and collections over data-parallel ranks; on one process, the values themselves."""

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
