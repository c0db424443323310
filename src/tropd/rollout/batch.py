"""The rows that are decoded together at the moment: which they are, how long, and what each is fed next.

What the host can count it counts, so that a device is asked only which rows have ended. B counts the rows.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

SPARE = 64
"""Columns of a mask beyond those in use, so that it is made anew only now and then."""


@dataclass(frozen=True)
class Row:
    """A row that joins the batch.

    Attributes:
        number: its number among all rows of the call.
        size: tokens of it whose keys and values are known.
        written: tokens written behind its context.
    """

    number: int
    size: int
    written: int = 1


class Batch:
    """Rows of one step, in the order of the cache's slots.

    Attributes:
        numbers: [B], each row's among all rows of the call.
        tokens: [B], the last token of each, which the model has not seen.
        positions: [B], that token's position.
        columns: [B], where the next one is written.
        ended: [B], rows that have nothing left to write.
    """

    def __init__(self, device: torch.device):
        self._rows: list[Row] = []  # as they would have been at step 0
        self._steps = 0
        self._mask: Tensor | None = None
        self._mask_is_stale = True
        self.numbers = self.tokens = self.positions = self.columns = torch.zeros(0, dtype=torch.long, device=device)
        self.ended = self.numbers.bool()

    @property
    def rows(self) -> list[int]:
        """The numbers, on the host."""
        return [row.number for row in self._rows]

    @property
    def longest(self) -> int:
        """Tokens of the longest row whose keys and values are known."""
        return max(row.size for row in self._rows) + self._steps

    @property
    def most_written(self) -> int:
        return max((row.written for row in self._rows), default=-self._steps) + self._steps

    @property
    def least_written(self) -> int:
        return min(row.written for row in self._rows) + self._steps

    def admit(self, rows: list[Row], numbers: Tensor, tokens: Tensor, ended: Tensor, first_column: int) -> None:
        """Add rows that have written their first token, into `first_column`."""
        self._rows += [replace(row, size=row.size - self._steps, written=row.written - self._steps) for row in rows]
        self.numbers = torch.cat([self.numbers, numbers])
        self.tokens = torch.cat([self.tokens, tokens])
        self.ended = torch.cat([self.ended, ended])
        self.columns = torch.cat([self.columns, torch.full_like(numbers, first_column + 1)])
        sizes = torch.tensor([row.size for row in rows], dtype=torch.long, device=numbers.device)
        self.positions = torch.cat([self.positions, sizes])
        self._mask_is_stale = True

    def advance(self, tokens: Tensor, ended: Tensor) -> None:
        """Every row has seen its last token and written `tokens`."""
        self._steps += 1
        self.tokens, self.ended = tokens, ended
        self.positions = self.positions + 1
        self.columns = self.columns + 1

    def mask(self) -> Tensor | None:
        """Which columns hold a token, [B, longest + 1], the new one's included; `None` if all of them do."""
        columns = self.longest + 1
        if self._mask_is_stale or (self._mask is not None and self._mask.shape[1] < columns):
            longest = max(row.size for row in self._rows)
            gaps = [longest - row.size for row in self._rows]
            self._mask = self._columns_from(gaps, columns + SPARE) if any(gaps) else None
            self._mask_is_stale = False
        return None if self._mask is None else self._mask[:, :columns]

    def _columns_from(self, gaps: list[int], columns: int) -> Tensor:
        device = self.numbers.device
        return (torch.arange(columns, device=device) >= torch.tensor(gaps, device=device)[:, None]).long()

    def let_go(self) -> list[int] | None:
        """Drop the rows that have ended; where each remaining one was, or `None` if none has ended.

        The last rows move to the places that become free, and the others stay where they are.
        """
        ended = self.ended.tolist()
        if not any(ended):
            return None
        remaining = [slot for slot, gone in enumerate(ended) if not gone]
        order = list(range(len(remaining)))
        movers = [slot for slot in remaining if slot >= len(remaining)]
        for slot in order:
            if ended[slot]:
                order[slot] = movers.pop()
        index = torch.tensor(order, dtype=torch.long, device=self.numbers.device)
        for name in ("numbers", "tokens", "positions", "columns", "ended"):
            setattr(self, name, getattr(self, name)[index])
        self._rows = [self._rows[slot] for slot in order]
        self._mask_is_stale = True
        return order
