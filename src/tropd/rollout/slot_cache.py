"""A key-value cache whose rows come and go while tokens are decoded with it.

Transformers' `DynamicCache` copies everything it holds for every token. Here keys and values lie in buffers with room
behind them: a token is written in place, what attention reads is a view, and a row that leaves costs the copy of one
other row. All rows end at the same column; what lies before a shorter one is padding that the attention mask hides.

B counts rows, W columns of a prefilled context, H heads, D their width.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

SMALLEST_ROOM = 64
"""Columns that a buffer grows by at least; a quarter of what it holds where that is more."""


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, [slots, H, columns, D], of which `rows` and the columns `first` to `end` are in use.

    Args:
        window: how far back attention reaches here; `None` is the whole context. Keys behind it are kept, unseen,
            until the buffer grows: a window saves work here, and no memory.
    """

    keys: Any  # tensors from `lazy_initialization` on; Transformers declares them optional
    values: Any

    def __init__(self, window: int | None):
        super().__init__()
        self.window = window
        self.is_sliding = window is not None
        self.rows = self.first = self.end = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Buffers without slots, of the shape and dtype of these states [B, H, W, D]."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (states[:0, :, :0] for states in (key_states, value_states))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the next columns of all rows; what attention reads of keys and values, as views."""
        begin, end = self.first + self._unseen(), self.end + key_states.shape[-2]
        self.keys[: self.rows, :, self.end : end] = key_states
        self.values[: self.rows, :, self.end : end] = value_states
        self.end = end
        return self.keys[: self.rows, :, begin:end], self.values[: self.rows, :, begin:end]

    def get_seq_length(self) -> int:
        return self.end - self.first

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        unseen = self._unseen()
        return self.get_seq_length() - unseen + query_length, unseen

    def _unseen(self) -> int:
        return 0 if self.window is None else max(self.get_seq_length() - self.window + 1, 0)

    def move(self, targets: Tensor, sources: Tensor, rows: int) -> None:
        """Copy the rows `sources` over the rows `targets` and keep the first `rows`."""
        if len(targets):
            for buffer in (self.keys, self.values):
                columns = buffer[:, :, self.first : self.end]
                columns[targets] = columns[sources]
        self.rows = rows

    def rebuild(self, slots: int, width: int, columns: int) -> None:
        """New buffers of `slots` × `columns`, in which what is in use ends at least at column `width`."""
        used = self.get_seq_length()
        end = max(used, width)
        self.keys, self.values = (
            self._moved(buffer, slots, end - used, columns) for buffer in (self.keys, self.values)
        )
        self.first, self.end = end - used, end

    def _moved(self, buffer: Tensor, slots: int, begin: int, columns: int) -> Tensor:
        # Zeros: a masked column must be finite, as attention multiplies it by a weight of zero.
        new = buffer.new_zeros(slots, buffer.shape[1], columns, buffer.shape[3])
        used = buffer[: self.rows, :, self.first : self.end]
        new[: self.rows, :, begin : begin + used.shape[2]] = used
        return new

    def admit(self, prefilled: Any, source: Tensor) -> None:
        """New rows: row `source[i]` of a prefilled layer, right-aligned, becomes the i-th of them."""
        end = self.rows + len(source)
        source = source.to(self.device)
        for buffer, states in ((self.keys, prefilled.keys), (self.values, prefilled.values)):
            buffer[self.rows : end, :, self.end - states.shape[2] : self.end] = states[source]
        self.rows = end


class SlotCache(Cache):
    """A `SlotLayer` for every layer of a prefilled cache; all of them have the same rows and columns in use."""

    layers: Any

    def __init__(self, prefilled: Any):
        super().__init__(layers=[SlotLayer(getattr(layer, "sliding_window", None)) for layer in prefilled.layers])
        for ours, theirs in zip(self.layers, prefilled.layers, strict=True):
            ours.lazy_initialization(theirs.keys, theirs.values)

    def admit(self, prefilled: Any, source: Tensor, width: int, slots: int, room: int) -> None:
        """Add the rows `source` [B] of a cache that was prefilled with `width` columns.

        Args:
            prefilled: a `DynamicCache` of any number of rows.
            source: the row of it that each new row begins as.
            width: columns of `prefilled`.
            slots: rows to make room for, if buffers have to grow.
            room: tokens that rows may still write, at most.
        """
        mine = self.layers[0]
        if mine.rows == 0:
            self._set_columns(first=mine.end)
        if mine.rows + len(source) > mine.keys.shape[0] or width > mine.end:
            self._rebuild(slots, width, room)
        self._set_columns(first=min(mine.first, mine.end - width))
        for ours, theirs in zip(self.layers, prefilled.layers, strict=True):
            ours.admit(theirs, source)

    def prepare(self, longest: int, room: int) -> None:
        """Forget the columns before the longest row's, and have room for one more.

        Args:
            longest: tokens of the longest row.
            room: tokens that rows may still write, at most.
        """
        mine = self.layers[0]
        self._set_columns(first=mine.end - longest)
        if mine.end == mine.keys.shape[2]:
            self._rebuild(mine.rows, longest, room)

    def keep(self, order: list[int]) -> None:
        """Let row i be what row `order[i]` is now; `order` has i itself wherever that row stays."""
        targets = [slot for slot, source in enumerate(order) if slot != source]
        moves = torch.tensor([targets, [order[slot] for slot in targets]], dtype=torch.long).to(self.layers[0].device)
        for layer in self.layers:
            layer.move(*moves.to(layer.device), rows=len(order))

    def _rebuild(self, slots: int, width: int, room: int) -> None:
        end = max(self.layers[0].get_seq_length(), width)
        for layer in self.layers:
            layer.rebuild(slots, width, end + max(1, min(room, max(SMALLEST_ROOM, end // 4))))

    def _set_columns(self, first: int) -> None:
        for layer in self.layers:
            layer.first = first


def can_move_rows(cache: Any) -> bool:
    """Is this a new cache of attention over whole contexts or sliding windows, and of nothing else?

    Recurrent and convolutional states, compressed, quantised, offloaded and static caches have no columns to align
    rows by, or keep them elsewhere.
    """
    if type(cache) is not DynamicCache or cache.offloading or not cache.layers:
        return False
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    return all(type(layer) in kinds and not layer.is_initialized for layer in cache.layers)  # type: ignore[union-attr]
