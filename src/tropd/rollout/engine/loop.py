"""A decoding loop for rows whose tokens depend on their address alone, and so on no order and on no batch.

Unlike Transformers' `_sample`, which it replaces: a context that several rows share is read once; contexts of
about one length are read together; a row that has ended leaves the batch, and one that waits may take its place; keys
and values are written in place. What it cannot do is left to `_sample`, as `why_plain` says before anything is
computed: rows that move, leave and share a context need attention over tokens whose columns can be aligned, and
processors that look at one row at a time.

R counts the rows of a call, B those in the batch at the moment, U contexts that are read together, W the columns of
the contexts, L the tokens that may be written, V the vocabulary.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from itertools import count, takewhile
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, GenerationMixin
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation import logits_process, stopping_criteria

from ...objective.endings import Endings, events_of, one_action
from ...objective.head.layer import Scratch, gather_logps, normalise_
from . import packed
from .slots import Kept, KeptStates, Row, Slots

LOOK_EVERY = {"cpu": 1, "elsewhere": 8}
"""Tokens between two looks at which rows have ended: each waits for a GPU, and none costs a CPU anything."""

AGREE_EVERY = 8
"""Forward passes between two questions whether another rank still writes, where weights are sharded."""

ALIKE = 0.75
"""Contexts are read together where the shortest has at least this share of the longest's tokens."""

REFILL = 0.25
"""Share of the places that are free before rows that wait are read."""

READ_SCORES = tuple(
    getattr(logits_process, name)
    for name in (
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "MinPLogitsWarper",
        "TopHLogitsWarper",
        "TypicalLogitsWarper",
        "EpsilonLogitsWarper",
        "EtaLogitsWarper",
        "SuppressTokensLogitsProcessor",
        "InfNanRemoveLogitsProcessor",
        "LogitNormalization",
    )
)
"""Processors that treat each row's scores alone, whatever was written before."""

READ_IDS = (
    logits_process.MinLengthLogitsProcessor,
    logits_process.MinNewTokensLengthLogitsProcessor,
    logits_process.RepetitionPenaltyLogitsProcessor,
    logits_process.NoRepeatNGramLogitsProcessor,
    logits_process.SequenceBiasLogitsProcessor,
    logits_process.NoBadWordsLogitsProcessor,
    logits_process.ForcedEOSTokenLogitsProcessor,
    logits_process.SuppressTokensAtBeginLogitsProcessor,
    logits_process.ExponentialDecayLengthPenalty,
)
"""Processors that read a row's ids, or how many there are, and no other row's."""

_ENDINGS = (stopping_criteria.MaxLengthCriteria, stopping_criteria.EosTokenCriteria)
CACHES = ("cache", "past_key_values")
"""What `generate` calls the cache that it hands over: the first from Transformers 5.24 on, the second before."""
_CACHE_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
_INPUTS = {"attention_mask", "position_ids", *CACHES, "use_cache", "logits_to_keep"}


# ---------------------------------------------------------------------- what a sampler knew of its tokens


class Noted(NamedTuple):
    """What is known of each token of one response; NaN where nothing is."""

    logps: list[float]  # log π of the token
    entropies: list[float]  # of the softmax that it was drawn from, in nats


class _Part(NamedTuple):
    """What was drawn after one context, in one turn."""

    context: list[int]
    position: int
    tokens: list[int]
    logps: list[float]
    entropies: list[float]


def unpad(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """The kept token ids of each row."""
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


@dataclass
class SamplerNotes:
    """Log-probability and entropy of drawn tokens, over all turns of one batch's rollouts.

    They belong to the tokens that the sampler drew after that context: tokens that a host or a user's function has put
    in their place have no note.

    >>> notes = SamplerNotes(temperature=1.0)
    >>> notes.add([(4, 1)], [[5, 8]], torch.tensor([[6, 7]]), torch.tensor([[-0.5, -1.0]]), torch.tensor([[0.7, 0.8]]))
    >>> [round(value, 1) for value in notes.of(row=4, prompt=[5], response=[8, 6, 7]).logps]
    [nan, -0.5, -1.0]
    >>> [round(value, 1) for value in notes.of(row=4, prompt=[5], response=[8, 6, 9]).logps]
    [nan, -0.5, nan]
    """

    temperature: float  # of the softmax that the numbers are of
    endings: Endings = ()  # ids that are one action in it; see `objective.endings`
    _parts: dict[int, list[_Part]] = field(default_factory=lambda: defaultdict(list))

    def add(
        self,
        places: Sequence[tuple[int, int]],
        contexts: Sequence[list[int]],
        tokens_BL: Tensor,
        logps_BL: Tensor,
        entropies_BL: Tensor,
    ) -> None:
        """Note what was drawn after each context, from its (row, position) on; NaN where nothing is known."""
        lines = zip(places, contexts, tokens_BL.tolist(), logps_BL.tolist(), entropies_BL.tolist(), strict=True)
        for (row, position), context, *columns in lines:
            self._parts[row].append(_Part(context, position, *columns))

    def of(self, row: int, prompt: list[int], response: list[int]) -> Noted | None:
        """The tokens of a row's response; `None` for a row of which nothing was noted."""
        if row not in self._parts:
            return None
        noted = Noted([math.nan] * len(response), [math.nan] * len(response))
        for part in self._parts[row]:
            if part.context != prompt + response[: part.position]:
                continue
            pairs = zip(response[part.position :], part.tokens, strict=False)
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            place = slice(part.position, part.position + same)
            noted.logps[place], noted.entropies[place] = part.logps[:same], part.entropies[:same]
        return noted


# ---------------------------------------------------------------------- decoding


@dataclass(frozen=True)
class Request:
    """What one call is to write."""

    input_ids: Tensor  # [R, W], padded on the left
    contexts: list[list[int]]  # each row's ids without padding
    keys: Tensor  # int64 [R, L], what each token is drawn with
    # maps scores [B, V] and a key for each row [B] to values, of which the drawn token's is the largest
    race: Callable[[Tensor, Tensor], Tensor]
    processors: Sequence[Any]  # change the scores before the draw, in their order
    eos_ids: Tensor | None  # [n] ids that end a row, or `None`
    pad_id: int  # what follows an ended row
    rows_at_once: int | None  # rows that are decoded together, at most; `None` is all
    synced_gpus: bool  # keep running the model until every rank has finished, as sharded weights need it
    inputs: dict[str, Any]  # further keyword arguments of the model
    cache_name: str  # the keyword under which it is given its cache
    # where each token's log-probability and entropy are recorded, in the model's softmax at its temperature, whatever
    # the processors do to it; `None` records nothing
    notes: SamplerNotes | None
    # keys and values of rows between their turns; `None` keeps none
    kept: KeptStates | None = None
    numbers: Sequence[int] = ()  # each row's in the whole step, by which `kept` knows it


class Output(NamedTuple):
    """What one call has written."""

    ids: Tensor  # [R, W + longest], contexts and what follows them; padding after a row that ended before
    logps: Tensor  # [R, L], of each token; NaN where there is none or nothing was asked for
    entropies: Tensor  # [R, L], in nats; the same


class _Group(NamedTuple):
    """Contexts that are read together, and the rows that continue each."""

    contexts: list[list[int]]
    rows: list[list[int]]


def decode(model: Any, request: Request) -> Output:
    """Continue all contexts, until every row has ended or is full."""
    loop = _Loop(model, request)
    slots, device = loop.slots, loop.device
    # Sharded weights are gathered for each pass anew.
    pays = device.type == "cpu" and not request.synced_gpus and loop.length >= packed.PAYS_FROM
    with loop.mode, packed.packed_weights(model) if pays else nullcontext():
        for number in count():
            busy = bool(slots.rows or loop.groups or loop.waiting)
            if request.synced_gpus and number % AGREE_EVERY == 0:
                ranks = torch.tensor(float(busy), device=device)
                dist.all_reduce(ranks)
                if ranks.item() == 0:
                    break
            if not request.synced_gpus and not busy:
                break
            # Reading one context at a time would not pay; processors that read ids want rows of one length.
            free = loop.at_once - len(slots.rows)
            if not loop.groups and free >= (1.0 if loop.reads_ids else REFILL) * loop.at_once:
                loop.groups = loop.next_groups(min(free, len(loop.waiting)))
            if loop.groups:
                loop.read(loop.groups.pop())
            elif slots.rows:
                loop.step()
            else:  # another rank needs our part of the weights
                model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
            if slots.rows and loop.look_in <= 0:
                if request.kept is not None:
                    loop.keep_ended(request.kept)
                slots.let_go()
                left = loop.length - max(slots.written, default=0)
                loop.look_in = min(LOOK_EVERY.get(device.type, LOOK_EVERY["elsewhere"]), left)
    return Output(loop.ids[:, : loop.width + loop.longest], loop.logps, loop.entropies)


class _Loop:
    """One call: the rows that wait, the groups about to be read, the batch, and what has been written."""

    def __init__(self, model: Any, request: Request):
        self.model, self.request = model, request
        rows, self.width = request.input_ids.shape
        self.length, self.device = request.keys.shape[1], request.input_ids.device
        self.at_once = min(request.rows_at_once or rows, rows)
        self.ids = torch.full((rows, self.width + self.length), request.pad_id, device=self.device)
        self.ids[:, : self.width] = request.input_ids
        self.logps, self.entropies = torch.full(
            (2, rows, self.length), torch.nan, dtype=torch.float32, device=self.device
        )
        self.scratch = Scratch()
        self.reads_ids = any(type(one) in READ_IDS for one in request.processors)
        # Taken from the end: the longest first, and those that are the same side by side.
        contexts = request.contexts
        self.waiting = sorted(range(rows), key=lambda row: (len(contexts[row]), contexts[row], -row))
        self.groups: list[_Group] = []
        self.slots = Slots(self.device)
        self.look_in = self.longest = 0
        self.mode, self.in_decoding_mode = ExitStack(), False

    def next_groups(self, places: int) -> list[_Group]:
        """Rows for this many free slots; the group with the longest contexts comes last."""
        groups: list[_Group] = []
        for _ in range(places):
            row = self.waiting.pop()
            context = self.request.contexts[row]
            if groups and context == groups[-1].contexts[-1]:
                groups[-1].rows[-1].append(row)
            elif groups and len(context) >= ALIKE * len(groups[-1].contexts[0]):
                groups[-1].contexts.append(context)
                groups[-1].rows.append([row])
            else:
                groups.append(_Group([context], [[row]]))
        return groups[::-1]

    def read(self, group: _Group) -> None:
        """Read the contexts of a group, draw the first token of each of its rows, and add them to the batch."""
        self.mode.close()
        self.in_decoding_mode = False
        prefilled = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        width = max(map(len, group.contexts))
        gaps = [width - len(context) for context in group.contexts]
        ids = [[self.request.pad_id] * gap + context for gap, context in zip(gaps, group.contexts, strict=True)]
        positions_UW = torch.arange(width, device=self.device) - torch.tensor(gaps, device=self.device)[:, None]
        mask_UW = (positions_UW >= 0).long() if any(gaps) else None
        kept = self.request.kept
        known = 0 if kept is None else self._begin(prefilled, group, gaps, kept)
        read, positions = torch.tensor(ids, device=self.device)[:, known:], positions_UW.clamp_min(0)[:, known:]
        logits = self._logits(read, mask_UW, positions, prefilled)

        rows = [Row(row, len(self.request.contexts[row])) for several in group.rows for row in several]
        numbers = torch.tensor([row.number for row in rows], device=self.device)
        source = torch.tensor([i for i, several in enumerate(group.rows) for _ in several], device=self.device)
        coming = sum(len(several) for other in self.groups for several in other.rows)
        self.slots.hold(prefilled, source, width, coming, self.length)
        tokens, ended = self._write(logits[source], numbers, torch.full_like(numbers, self.width), written=0)
        self.slots.admit(rows, numbers, tokens, ended, first_column=self.width)
        self.look_in = 0

    def _begin(self, prefilled: DynamicCache, group: _Group, gaps: list[int], kept: KeptStates) -> int:
        """Put what is known of a group's rows into their cache; returns how many columns need not be read."""
        numbers = self.request.numbers
        counts = [
            [kept.known(numbers[row], context) for row in several]
            for several, context in zip(group.rows, group.contexts, strict=True)
        ]
        columns = min(gap + max(own) for gap, own in zip(gaps, counts, strict=True))
        if columns > min(gaps):
            rows = [several[own.index(max(own))] for several, own in zip(group.rows, counts, strict=True)]
            kept.begin(prefilled, [numbers[row] for row in rows], gaps, columns)
            return columns
        return 0

    def keep_ended(self, kept: KeptStates) -> None:
        """Keep what is known of the rows that have ended, where all rows are decoded together.

        That takes as much memory as the batch itself; nothing is kept of rows that take turns in it, or of windows.
        """
        request, slots = self.request, self.slots
        if self.at_once < len(request.contexts) or slots.is_sliding_anywhere:
            return
        ended = torch.nonzero(slots.ended)[:, 0].tolist()
        written = self.ids[slots.numbers[ended], self.width :].tolist()
        for slot, tokens in zip(ended, written, strict=True):
            row, size = slots.rows[slot], slots.sizes[slot]
            ids = [*request.contexts[row], *tokens][:size]
            kept.keep(request.numbers[row], Kept(ids, slots.states(slot, size)))

    def step(self) -> None:
        """One more token of each row of the batch."""
        if not self.in_decoding_mode:
            self.mode.enter_context(getattr(self.model, "_optimize_model_for_decode", nullcontext)())
            self.in_decoding_mode = True
        slots = self.slots
        mask = slots.prepare(room=self.length - min(slots.written))
        logits = self._logits(slots.tokens[:, None], mask, slots.positions[:, None], slots)
        slots.advance(*self._write(logits, slots.numbers, slots.columns, max(slots.written), slots.ended))
        self.look_in -= 1

    def _logits(self, input_ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Any) -> Tensor:
        """Scores of the next token of each row, float32 [·, V]."""
        output = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            return_dict=True,
            **{self.request.cache_name: cache},
            **self.request.inputs,
        )
        return output.logits[:, -1].to(self.device, torch.float32)

    def _write(
        self, logits: Tensor, numbers: Tensor, columns: Tensor, written: int, ended: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw a token for each row and write it down; the tokens, and which rows have ended now.

        Args:
            logits: [B, V].
            numbers: [B], each row's among all.
            columns: [B], where its token is in `ids`.
            written: tokens that each of them, or the one with most, has written before.
            ended: [B], rows that had ended before and get padding.
        """
        scores, places = logits, columns - self.width
        # Processors that read ids are given the call's, padding and all.
        ids = self.ids[numbers, : self.width + written] if self.reads_ids else numbers[:, None]
        for given in self.request.processors:
            processor, lengths = given, getattr(given, "prompt_ignore_length", None)
            if isinstance(lengths, Tensor):  # one for each row of the call
                processor = copy.copy(given)
                processor.prompt_ignore_length = lengths.to(numbers.device)[numbers]
            scores = processor(ids, scores)
        tokens = self.request.race(scores, self.request.keys[numbers, places]).argmax(-1)
        if self.request.notes is not None:
            self._note(logits, tokens, numbers, places, ended)
        if ended is not None:
            tokens = torch.where(ended, self.request.pad_id, tokens)
        self.ids[numbers, columns] = tokens
        self.longest = max(self.longest, written + 1)
        ends = places == self.length - 1
        if self.request.eos_ids is not None:
            ends = ends | torch.isin(tokens, self.request.eos_ids)
        return tokens, ends if ended is None else ends | ended

    def _note(self, logits: Tensor, tokens: Tensor, numbers: Tensor, places: Tensor, ended: Tensor | None) -> None:
        """Record the model's own numbers for the tokens just drawn, except in rows that had ended before."""
        assert self.request.notes is not None
        endings = self.request.notes.endings
        events = one_action(logits / self.request.notes.temperature, endings)
        shifted, log_sum, entropies = normalise_(events, self.scratch)
        logps = gather_logps(shifted, events_of(tokens, endings)) - log_sum
        if ended is not None:
            logps, entropies = logps.masked_fill(ended, torch.nan), entropies.masked_fill(ended, torch.nan)
        self.logps[numbers, places] = logps
        self.entropies[numbers, places] = entropies


def why_plain(
    model: Any,
    input_ids: Tensor,
    processors: Sequence[Any],
    criteria: Sequence[Any],
    config: GenerationConfig,
    given: dict[str, Any],
) -> str | None:
    """Why this call must fall back to Transformers' own loop, in words; `None` if it need not.

    `given` are the call's keyword arguments for the model.
    """
    known = (*READ_SCORES, *READ_IDS)
    cache = next((given[name] for name in CACHES if name in given), None)
    # A new cache of attention over whole contexts or sliding windows: recurrent and convolutional states, compressed,
    # quantised, offloaded and static caches have no columns to align rows by, or keep them elsewhere.
    layers: list[Any] = cache.layers if type(cache) is DynamicCache and not cache.offloading else []
    of_call = {
        "a cache whose rows cannot be moved": not layers
        or any(type(layer) not in _CACHE_LAYERS or layer.is_initialized for layer in layers),
        "decoding without a cache": not given.get("use_cache"),
        "inputs other than token ids": any(given[name] is not None for name in given.keys() - _INPUTS),
        "scores, states or attention in the output": bool(config.return_dict_in_generate),
        "a prefill in chunks": config.prefill_chunk_size is not None,
        "a logits processor that may depend on the batch": any(type(one) not in known for one in processors),
        "a stopping criterion other than length and ending": any(type(one) not in _ENDINGS for one in criteria),
    }
    for reason, holds in of_call.items():
        if holds:
            return reason
    positions, mask = given.get("position_ids"), given.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask
    padded_left = (mask.diff(dim=1) >= 0).all() and (mask[:, -1] == 1).all()
    counted = (mask.long().cumsum(-1) - 1).clamp_min(0)
    prepares = getattr(model.prepare_inputs_for_generation, "__func__", None)
    of_model = {
        "inputs that the model prepares itself": prepares is not GenerationMixin.prepare_inputs_for_generation,
        "attention in chunks": getattr(model.config.get_text_config(), "attention_chunk_size", None) is not None,
        "gradient checkpointing": model.training
        and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()),
        "ids on a different device than the model": input_ids.device != model.device,
        "positions that are not computed from a mask": positions is None
        or positions.dim() != 2
        or not (padded_left and (positions == counted).all()),
    }
    return next((reason for reason, holds in of_model.items() if holds), None)
