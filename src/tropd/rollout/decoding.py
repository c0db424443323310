"""A decoding loop for rows whose tokens depend on their address alone, and so on no order and on no batch.

Beside Transformers' `_sample`, which it stands in for: a context that several rows share is read once; contexts of
about one length are read together; a row that has ended leaves the batch, and one that waits may take its place; keys
and values are written in place. `plain.why_plain` says what is left to `_sample`.

R counts the rows of a call, B those in the batch at the moment, U contexts that are read together, W the columns of
the contexts, L the tokens that may be written, V the vocabulary.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import DynamicCache

from ..objective.endings import Endings, events_of, one_action
from ..objective.head.layer import Scratch, gather_logps, normalise_
from .batch import Batch, Row
from .plain import READ_IDS
from .slot_cache import SlotCache

LOOK_EVERY = {"cpu": 1, "elsewhere": 8}
"""Tokens between two looks at which rows have ended: each waits for a GPU, and none costs a CPU anything."""

AGREE_EVERY = 8
"""Forward passes between two questions whether another rank still writes, where weights are sharded."""

ALIKE = 0.75
"""Contexts are read together where the shortest has at least this share of the longest's tokens."""

REFILL = 0.25
"""Share of the places that are free before rows that wait are read."""

Draw = Callable[[Tensor, Tensor], Tensor]
"""Scores [B, V] and a key for each row [B] to token ids [B]."""


@dataclass(frozen=True)
class Writing:
    """What one call is to write.

    Attributes:
        input_ids: [R, W], padded on the left.
        attention_mask: [R, W], 1 on a context's tokens; `None` where there is no padding.
        keys: int64 [R, L], what each token is drawn with.
        draw: draws the tokens.
        processors: change the scores before the draw, in their order.
        eos_ids: [n] ids that end a row, or `None`.
        pad_id: what follows an ended row.
        rows_at_once: rows that are decoded together, at most; `None` is all.
        synced_gpus: keep running the model until every rank has finished, as sharded weights need it.
        inputs: further keyword arguments of the model.
        cache_name: the keyword under which it is given its cache.
        temperature: note each token's log-probability, and the entropy, in the model's softmax at this temperature,
            whatever the processors do to it; `None` notes nothing.
        endings: ids that are one action in what is noted.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    keys: Tensor
    draw: Draw
    processors: Sequence[Any]
    eos_ids: Tensor | None
    pad_id: int
    rows_at_once: int | None
    synced_gpus: bool
    inputs: dict[str, Any]
    cache_name: str = "past_key_values"
    temperature: float | None = None
    endings: Endings = ()

    def behind(self, ids: Tensor) -> Tensor:
        """What of [R, W + L'] was written behind the contexts."""
        return ids[:, self.input_ids.shape[1] :]


class Written(NamedTuple):
    """What one call has written.

    Attributes:
        ids: [R, W + longest], contexts and what follows them; padding behind a row that ended before.
        logps: [R, L], of each token; NaN where there is none. `None` where nothing was noted.
        entropies: [R, L], in nats; likewise.
    """

    ids: Tensor
    logps: Tensor | None
    entropies: Tensor | None


def decode(model: Any, writing: Writing) -> Written:
    """Write behind all contexts, until every row has ended or is full."""
    return _Loop(model, writing).run()


@dataclass(frozen=True)
class _Group:
    """Contexts that are read together, and the rows that go on from each."""

    contexts: list[list[int]]
    rows: list[list[int]]


class _Loop:
    """One call: the rows that wait, the groups about to be read, and the batch."""

    def __init__(self, model: Any, writing: Writing):
        self.model, self.writing = model, writing
        count, self.width = writing.input_ids.shape
        self.length, self.device = writing.keys.shape[1], writing.input_ids.device
        self.at_once = min(writing.rows_at_once or count, count)
        self.ids = torch.full((count, self.width + self.length), writing.pad_id, device=self.device)
        self.ids[:, : self.width] = writing.input_ids
        self.logps = self.entropies = None
        if writing.temperature is not None:
            self.logps = torch.full(writing.keys.shape, torch.nan, device=self.device)
            self.entropies = torch.full_like(self.logps, torch.nan)
        self.scratch = Scratch()
        self.reads_ids = any(type(one) in READ_IDS for one in writing.processors)
        self.contexts = contexts_of(writing.input_ids, writing.attention_mask)
        # Taken from the end: the longest first, and those that are the same side by side.
        self.waiting = sorted(range(count), key=lambda row: (len(self.contexts[row]), self.contexts[row], -row))
        self.groups: list[_Group] = []
        self.batch = Batch(self.device)
        self.cache: SlotCache | None = None
        self.look_in = self.longest = self.rounds = 0
        self.stack = ExitStack()
        self.in_decoding_mode = False

    def run(self) -> Written:
        with self.stack:
            while self._another_round():
                if not self.groups and self._may_admit():
                    self.groups = self._next_groups()
                if self.groups:
                    self._read(self.groups.pop())
                elif self.batch.rows:
                    self._step()
                else:
                    self.model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=False)
        return Written(self.ids[:, : self.width + self.longest], self.logps, self.entropies)

    def _another_round(self) -> bool:
        """Is there something to do, here or on another rank that needs our part of the weights?"""
        busy = bool(self.batch.rows or self.groups or self.waiting)
        if not self.writing.synced_gpus:
            return busy
        self.rounds += 1
        if self.rounds % AGREE_EVERY != 1:
            return True
        ranks = torch.tensor(float(busy), device=self.device)
        dist.all_reduce(ranks)
        return bool(ranks.item() > 0)

    # ------------------------------------------------------------------ contexts

    def _may_admit(self) -> bool:
        """Reading one context at a time would not pay; processors that read ids want rows of one length."""
        free = self.at_once - len(self.batch.rows)
        return bool(self.waiting) and (free == self.at_once if self.reads_ids else free >= REFILL * self.at_once)

    def _next_groups(self) -> list[_Group]:
        """Rows for the free places; the group of the longest contexts comes last."""
        groups: list[_Group] = []
        for _ in range(min(self.at_once - len(self.batch.rows), len(self.waiting))):
            row = self.waiting.pop()
            context = self.contexts[row]
            if groups and context == groups[-1].contexts[-1]:
                groups[-1].rows[-1].append(row)
            elif groups and len(context) >= ALIKE * len(groups[-1].contexts[0]):
                groups[-1].contexts.append(context)
                groups[-1].rows.append([row])
            else:
                groups.append(_Group([context], [[row]]))
        return groups[::-1]

    def _read(self, group: _Group) -> None:
        """Read the contexts of a group, draw the first token of each of its rows, and add them to the batch."""
        self.stack.close()
        self.in_decoding_mode = False
        prefilled = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        input_ids, mask, positions = self._padded(group.contexts)
        logits = self._logits(input_ids, mask, positions, prefilled)
        rows = [Row(row, len(self.contexts[row])) for several in group.rows for row in several]
        source = self._tensor([number for number, several in enumerate(group.rows) for _ in several])
        coming = sum(len(several) for other in self.groups for several in other.rows)
        if self.cache is None:
            self.cache = SlotCache(prefilled)
        self.cache.admit(prefilled, source, input_ids.shape[1], len(self.batch.rows) + len(rows) + coming, self.length)
        numbers = self._tensor([row.number for row in rows])
        tokens, ended = self._write(logits[source], numbers, torch.full_like(numbers, self.width), written=0)
        self.batch.admit(rows, numbers, tokens, ended, first_column=self.width)
        self.longest = max(self.longest, 1)
        self._let_go()

    def _padded(self, contexts: list[list[int]]) -> tuple[Tensor, Tensor | None, Tensor]:
        """Ids, mask and positions, each [U, W]; no mask where the contexts have one length."""
        width = max(map(len, contexts))
        gaps = [width - len(context) for context in contexts]
        ids = [[self.writing.pad_id] * gap + context for gap, context in zip(gaps, contexts, strict=True)]
        positions = torch.arange(width, device=self.device) - self._tensor(gaps)[:, None]
        return self._tensor(ids), (positions >= 0).long() if any(gaps) else None, positions.clamp_min(0)

    # ------------------------------------------------------------------ tokens

    def _step(self) -> None:
        """One more token of each row of the batch."""
        assert self.cache is not None
        if not self.in_decoding_mode:
            self.stack.enter_context(getattr(self.model, "_optimize_model_for_decode", nullcontext)())
            self.in_decoding_mode = True
        batch = self.batch
        self.cache.prepare(batch.longest, room=self.length - batch.least_written)
        logits = self._logits(batch.tokens[:, None], batch.mask(), batch.positions[:, None], self.cache)
        tokens, ended = self._write(logits, batch.numbers, batch.columns, batch.most_written, batch.ended)
        batch.advance(tokens, ended)
        self.longest = max(self.longest, batch.most_written)
        self.look_in -= 1
        if self.look_in <= 0:
            self._let_go()

    def _logits(self, input_ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Any) -> Tensor:
        """Scores of the next token of each row, float32 [·, V]."""
        output = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            return_dict=True,
            **{self.writing.cache_name: cache},
            **self.writing.inputs,
        )
        return output.logits[:, -1].to(self.device, torch.float32)

    def _write(
        self, logits: Tensor, numbers: Tensor, columns: Tensor, written: int, ended: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw a token for each row and write it down; the tokens, and which rows have ended now.

        Args:
            logits: [B, V].
            numbers: [B], each row's among all.
            columns: [B], where its token stands in `ids`.
            written: tokens that each of them, or the one with most, has written before.
            ended: [B], rows that had ended before and get padding.
        """
        tokens = self.writing.draw(
            self._processed(logits, numbers, written), self.writing.keys[numbers, columns - self.width]
        )
        self._note(logits, tokens, numbers, columns - self.width, ended)
        if ended is not None:
            tokens = torch.where(ended, self.writing.pad_id, tokens)
        self.ids[numbers, columns] = tokens
        ends = columns == self.width + self.length - 1
        if self.writing.eos_ids is not None:
            ends = ends | torch.isin(tokens, self.writing.eos_ids)
        return tokens, ends if ended is None else ends | ended

    def _note(self, logits: Tensor, tokens: Tensor, numbers: Tensor, places: Tensor, ended: Tensor | None) -> None:
        """Keep what the model itself thinks of the tokens just drawn; nothing of rows that had ended before."""
        temperature = self.writing.temperature
        if self.logps is None or self.entropies is None or temperature is None:
            return
        endings = self.writing.endings
        shifted, log_sum, entropies = normalise_(one_action(logits / temperature, endings), self.scratch)
        logps = gather_logps(shifted, events_of(tokens, endings)) - log_sum
        if ended is not None:
            logps, entropies = logps.masked_fill(ended, torch.nan), entropies.masked_fill(ended, torch.nan)
        self.logps[numbers, places] = logps
        self.entropies[numbers, places] = entropies

    def _processed(self, scores: Tensor, numbers: Tensor, written: int) -> Tensor:
        """What the processors make of the scores; those that read ids are given the call's, padding and all."""
        ids = numbers[:, None]
        if self.reads_ids:
            ids = self.ids[:, : self.width + written].index_select(0, numbers)
        for processor in self.writing.processors:
            scores = _of_rows(processor, numbers)(ids, scores)
        return scores

    # ------------------------------------------------------------------ rows that leave

    def _let_go(self) -> None:
        """Look at which rows have ended; those leave the batch."""
        order = self.batch.let_go()
        if order is not None:
            assert self.cache is not None
            self.cache.keep(order)
        if self.batch.rows:
            every = LOOK_EVERY.get(self.device.type, LOOK_EVERY["elsewhere"])
            self.look_in = min(every, self.length - self.batch.most_written)

    def _tensor(self, numbers: list) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self.device)


def contexts_of(input_ids: Tensor, mask: Tensor | None) -> list[list[int]]:
    """Each row's ids without padding."""
    rows = input_ids.tolist()
    if mask is None:
        return rows
    return [row[len(row) - size :] for row, size in zip(rows, mask.sum(-1).tolist(), strict=True)]


def _of_rows(processor: Any, numbers: Tensor) -> Any:
    """The processor for some of the rows, where it knows something of each."""
    known = getattr(processor, "prompt_ignore_length", None)
    if not isinstance(known, Tensor):
        return processor
    selected = copy.copy(processor)
    selected.prompt_ignore_length = known.to(numbers.device)[numbers]
    return selected
