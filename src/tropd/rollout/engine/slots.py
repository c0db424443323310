"""The rows that are decoded together at the moment, and their keys and values.

Transformers' `DynamicCache` copies everything it holds for every token. Here keys and values are in buffers with room
at the end: a token is written in place, what attention reads is a view, and a row that leaves costs the copy of one
other row. All rows end at the same column; before a shorter one is padding that the attention mask hides.

B counts rows, W columns of a prefilled context, H heads, D their width. What the host can count it counts, so that a
device is asked only which rows have ended.
"""

import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

SMALLEST_ROOM = 64
"""Columns that a buffer grows by at least; a quarter of what it holds where that is more."""

SPARE = 64
"""Columns of a mask beyond those in use, so that it is made anew only now and then."""


class Row(NamedTuple):
    """A row that joins the batch."""

    number: int  # its number among all rows of the call
    size: int  # tokens of it whose keys and values are known


class Kept(NamedTuple):
    """What is known of one row between two turns."""

    ids: list[int]  # the tokens whose keys and values these are
    states: list[tuple[Tensor, Tensor]]  # of each layer, keys and values [H, tokens, D]


class KeptStates:
    """Keys and values of rows between the turns of one batch's rollouts, so that a turn reads only what is new.

    They depend on the weights, so this lives no longer than the batch. A row's are handed over when it
    continues.
    """

    def __init__(self) -> None:
        self._rows: dict[int, Kept] = {}

    def keep(self, row: int, kept: Kept) -> None:
        """Note what is known of a row, by its number in the whole step."""
        self._rows[row] = kept

    def known(self, row: int, context: list[int]) -> int:
        """How many of a context's first tokens are known; the last one never is, as its logits are wanted."""
        ids = self._rows[row].ids if row in self._rows else []
        most = min(len(ids), len(context) - 1)
        if ids[:most] == context[:most]:
            return most
        return next(place for place in range(most) if ids[place] != context[place])

    def begin(self, cache: Any, rows: list[int], gaps: list[int], columns: int) -> None:
        """Begin an empty cache with the first `columns` of rows that have a gap of padding before them."""
        kept = [self._rows.pop(row) if gap < columns else None for row, gap in zip(rows, gaps, strict=True)]
        like = next(one for one in kept if one is not None).states
        for number, (layer, of_layer) in enumerate(zip(cache.layers, like, strict=True)):
            both = [states.new_zeros(len(rows), states.shape[0], columns, states.shape[2]) for states in of_layer]
            for place, (one, gap) in enumerate(zip(kept, gaps, strict=True)):
                for buffer, states in zip(both, one.states[number] if one else (), strict=False):
                    buffer[place, :, gap:] = states[:, : columns - gap]
            layer.update(*both)


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, [slots, H, columns, D], of which `rows` and the columns `first` to `end` are in use.

    Where attention has a window, keys before it are kept, unread, until the buffer grows: a window saves work here, and
    no memory.

    Args:
        prefilled: a layer of the same window, shape, dtype and device.
    """

    keys: Any  # always tensors; Transformers declares them optional
    values: Any

    def __init__(self, prefilled: Any):
        super().__init__()
        window = getattr(prefilled, "sliding_window", None)
        self.is_sliding, self.window = window is not None, sys.maxsize if window is None else window
        self.keys, self.values = prefilled.keys[:0, :, :0], prefilled.values[:0, :, :0]
        self.dtype, self.device, self.is_initialized = self.keys.dtype, self.keys.device, True
        self.rows = self.first = self.end = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the constructor has done it."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the next columns of all rows; what attention reads of keys and values, as views."""
        begin, end = max(self.first, self.end - self.window + 1), self.end + key_states.shape[-2]
        self.keys[: self.rows, :, self.end : end] = key_states
        self.values[: self.rows, :, self.end : end] = value_states
        self.end = end
        return self.keys[: self.rows, :, begin:end], self.values[: self.rows, :, begin:end]

    def get_seq_length(self) -> int:
        return self.end - self.first

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        begin = max(self.first, self.end - self.window + 1)
        return self.end - begin + query_length, begin - self.first


class Slots(Cache):
    """The rows of a step, and their keys and values: slot i of each list, tensor and layer is one row's.

    Attributes:
        rows: each row's number among all rows of the call; on the host, as the next two.
        sizes: tokens of each whose keys and values are known.
        written: tokens that each has written after its context.
        numbers: [B], `rows` on the device.
        tokens: [B], the last token of each, which the model has not seen.
        positions: [B], that token's position.
        columns: [B], where the next one is written.
        ended: [B], rows that have nothing left to write.
        layers: a `SlotLayer` for each layer of the model, from the first context on; all of them have the same rows and
            columns in use.
    """

    layers: Any

    def __init__(self, device: torch.device):
        super().__init__(layers=[])
        self.rows: list[int] = []
        self.sizes: list[int] = []
        self.written: list[int] = []
        self.numbers = self.tokens = self.positions = self.columns = torch.zeros(0, dtype=torch.long, device=device)
        self.ended = self.numbers.bool()
        self._mask: Tensor | None = None
        self._mask_is_stale = True

    def hold(self, prefilled: Any, source: Tensor, width: int, coming: int, room: int) -> None:
        """Take over keys and values of rows that `admit` adds: of the rows `source` [B] of a prefilled cache.

        Args:
            prefilled: a `DynamicCache` of any number of rows, right-aligned.
            source: the row of it that each new row begins as.
            width: columns of `prefilled`.
            coming: further rows to make room for, if buffers have to grow.
            room: tokens that rows may still write, at most.
        """
        if not self.layers:
            self.layers = [SlotLayer(layer) for layer in prefilled.layers]
        mine = self.layers[0]
        if mine.rows == 0:
            for layer in self.layers:
                layer.first = layer.end
        rows, longest = mine.rows + len(source), max(mine.end - mine.first, width)
        if rows > mine.keys.shape[0] or width > mine.end:
            self._grow(rows + coming, width, room)
        for ours, theirs in zip(self.layers, prefilled.layers, strict=True):
            for buffer, states in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
                begin = ours.end - states.shape[2]
                buffer[ours.rows : rows, :, begin : ours.end] = states[source.to(ours.device)]
            ours.rows, ours.first = rows, ours.end - longest

    def admit(self, rows: list[Row], numbers: Tensor, tokens: Tensor, ended: Tensor, first_column: int) -> None:
        """Add rows that have written their first token, into `first_column`."""
        sizes = [row.size for row in rows]
        self.rows += [row.number for row in rows]
        self.sizes += sizes
        self.written += [1] * len(rows)
        self.numbers = torch.cat([self.numbers, numbers])
        self.tokens = torch.cat([self.tokens, tokens])
        self.positions = torch.cat([self.positions, torch.tensor(sizes, dtype=torch.long, device=numbers.device)])
        self.columns = torch.cat([self.columns, torch.full_like(numbers, first_column + 1)])
        self.ended = torch.cat([self.ended, ended])
        self._mask_is_stale = True

    def prepare(self, room: int) -> Tensor | None:
        """Forget the columns before the longest row's, and have room for one more.

        Args:
            room: tokens that rows may still write, at most.

        Returns:
            Which columns hold a token, [B, longest + 1], the new one's included; `None` if all of them do.
        """
        longest = max(self.sizes)
        for layer in self.layers:
            layer.first = layer.end - longest
        if self.layers[0].end == self.layers[0].keys.shape[2]:
            self._grow(self.layers[0].rows, longest, room)
        if self._mask_is_stale or (self._mask is not None and self._mask.shape[1] <= longest):
            self._mask, self._mask_is_stale = None, False
            if min(self.sizes) < longest:
                sizes = torch.tensor(self.sizes, device=self.numbers.device)
                every = torch.arange(longest + 1 + SPARE, device=sizes.device)
                self._mask = (every >= longest - sizes[:, None]).long()
        return None if self._mask is None else self._mask[:, : longest + 1]

    def advance(self, tokens: Tensor, ended: Tensor) -> None:
        """Every row has seen its last token and written `tokens`."""
        self.sizes = [size + 1 for size in self.sizes]
        self.written = [count + 1 for count in self.written]
        self.tokens, self.ended = tokens, ended
        self.positions = self.positions + 1
        self.columns = self.columns + 1

    def let_go(self) -> None:
        """Drop the rows that have ended; the last ones move to the places that become free, the others stay."""
        ended = self.ended.tolist()
        if not any(ended):
            return
        remaining = [slot for slot, gone in enumerate(ended) if not gone]
        order = list(range(len(remaining)))
        movers = [slot for slot in remaining if slot >= len(remaining)]
        for slot in order:
            if ended[slot]:
                order[slot] = movers.pop()
        index = torch.tensor(order, dtype=torch.long, device=self.numbers.device)
        for name in ("numbers", "tokens", "positions", "columns", "ended"):
            setattr(self, name, getattr(self, name)[index])
        for name in ("rows", "sizes", "written"):
            setattr(self, name, [getattr(self, name)[slot] for slot in order])
        self._mask_is_stale = True
        moved = [slot for slot, source in enumerate(order) if slot != source]
        moves = torch.tensor([moved, [order[slot] for slot in moved]], dtype=torch.long).to(self.layers[0].device)
        for layer in self.layers:
            targets, sources = moves.to(layer.device)
            for buffer in (layer.keys, layer.values) if moved else ():
                columns = buffer[:, :, layer.first : layer.end]
                columns[targets] = columns[sources]
            layer.rows = len(order)

    @property
    def is_sliding_anywhere(self) -> bool:
        """Has some layer a window?"""
        return any(layer.is_sliding for layer in self.layers)

    def states(self, slot: int, size: int) -> list[tuple[Tensor, Tensor]]:
        """A copy of the last `size` columns of a row, of each layer: keys and values [H, size, D]."""
        parts = ((layer, slice(layer.end - size, layer.end)) for layer in self.layers)
        return [(layer.keys[slot, :, part].clone(), layer.values[slot, :, part].clone()) for layer, part in parts]

    def _grow(self, slots: int, width: int, room: int) -> None:
        """New buffers with this many slots, whose used part ends at column `width` or later."""
        for layer in self.layers:
            used = layer.end - layer.first
            end = max(used, width)
            columns = end + max(1, min(room, max(SMALLEST_ROOM, end // 4)))
            for name in ("keys", "values"):
                held = getattr(layer, name)[: layer.rows, :, layer.first : layer.end]
                # Zeros: a masked column must be finite, as attention multiplies it by a weight of zero.
                buffer = held.new_zeros(slots, held.shape[1], columns, held.shape[3])
                buffer[: layer.rows, :, end - used : end] = held
                setattr(layer, name, buffer)
            layer.first, layer.end = end - used, end
