"""Addressed sampling: what a token is drawn with depends on (seed, step, row, position) and on nothing else.

A token is the winner of an exponential race: with independent E_v ~ Exp(1), argmax_v π(v)/E_v is distributed as π
(Gumbel-max, written without its two logarithms; `torch.multinomial` draws one token in the same way). What is new is
where the E_v come from: Philox gives one key for each (row, position), SplitMix64 spreads it over the vocabulary. All
of it is integer arithmetic, so CPU and GPU have the same noise, and PyTorch's generators are neither read nor moved.

One uniform and the inverse of the cumulated softmax would be cheaper, but a softmax that differs by rounding (another
batch, another padding) moves every boundary after the difference. In the race two softmaxes at a total variation of δ
part at no more than 2δ/(1 + δ) of the tokens; `benchmarks/addressed_sampling.py` measures both.

B counts sequences, V is the vocabulary, L the tokens that are asked for.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ...models.hidden_states import replaced
from ...objective.randomness import DrawAddress, addressed_uniforms
from .loop import CACHES, Request, SamplerNotes, decode, unpad, why_plain
from .self_test import why_not_here
from .slots import KeptStates
from .writing import KNOWN, Way, check_padded, find_way

logger = logging.getLogger(__name__)

SAMPLING_STREAM = 2
"""Addressed draws of a training step's tokens; 0 and 1 are the trust gate's, in training and in evaluation."""

EVALUATION_SAMPLING_STREAM = 3
"""Addressed draws of an evaluation's tokens."""

PREFIX_STREAM = 4
"""Addressed draws of teacher prefixes that are written in a training step; a prompt's row is its first rollout's."""

RESPONSE_STREAM = 5
"""Addressed draws of the teacher responses that are written before a run; the row is the line of their file."""

BENCHMARK_STREAM = 6
"""Addressed draws of responses to a benchmark; the row is the problem's and the sample's."""

THEIR_LOOP, OUR_LOOP = 0.0, 1.0
"""Transformers' decoding loop and ours, as the metric rollout/engine has them."""

Place = tuple[int, int]
"""(row in the whole step, position in the response) of the next token of a sequence."""

# SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), as signed 64-bit numbers.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64

_LARGEST_UNIFORM = 1 - 2**-24
"""Below 1 in float32, so that E is finite and the only token of a softmax wins."""

BLOCKS = {"cpu": 2**18, "elsewhere": 2**24}
"""Numbers made at once: 2 MiB as int64, which a CPU's cache holds, and 128 MiB, which keep a GPU busy."""


@dataclass(frozen=True)
class AddressedNoise:
    """The noise of one call of the sampler."""

    seed: int  # the run's
    step: int  # optimiser steps taken before this one
    stream: int  # number of the use, see `objective.randomness`
    places: Sequence[Place]  # where each sequence of the call continues
    synced_gpus: bool = False  # keep running until every rank has finished, as sharded weights need it
    rows_at_once: int | None = None  # sequences that are decoded together, at most; `None` is all
    # where to write down what the sampler knows of each token; of what Transformers' own loop draws, the
    # log-probabilities alone
    notes: SamplerNotes | None = None
    # keys and values of rows between their turns, where our loop decodes them; `None` reads each turn's context wholly
    kept: KeptStates | None = None
    used: list[float] = field(default_factory=list)  # which loop has decoded is added here, `OUR_LOOP` or `THEIR_LOOP`
    plainly: bool = False  # leave it to Transformers' own loop in any case

    @property
    def address(self) -> DrawAddress:
        """Of sequences that all begin here."""
        return DrawAddress(self.seed, self.step, self.stream, tuple(row for row, _ in self.places))

    def keys(self, length: int) -> Tensor:
        """53 random bits for each of the next `length` tokens, int64 [B, L].

        >>> whole, rest = AddressedNoise(0, 7, 2, [(3, 0), (5, 0)]), AddressedNoise(0, 7, 2, [(5, 4)])
        >>> bool((whole.keys(9)[1, 4:] == rest.keys(5)[0]).all())
        True
        """
        draws = [
            addressed_uniforms(self.seed, self.step, [row], position + length, self.stream)[0, position:]
            for row, position in self.places
        ]
        return (torch.stack(draws) * 2**53).to(torch.int64)

    def generate(self, way: Way, generate: Callable, asked: dict[str, Any]) -> Tensor:
        """`generate(**asked)` with this noise, in one way; token ids [R, W + L]."""
        noise = replace(self, plainly=way.plainly)
        if not way.apart:
            return generate(**asked, custom_generate=noise.decode)  # type: ignore[no-any-return]
        ids, mask = asked["input_ids"], asked["attention_mask"]
        together: dict[Any, list[int]] = defaultdict(list)
        for row, length in enumerate(mask.sum(-1).tolist()):
            together[length if way.apart == "lengths" else (length, row)].append(row)
        written: dict[int, Tensor] = {}
        for rows in together.values():
            length = int(mask[rows[0]].sum())
            part = asked | {"input_ids": ids[rows, -length:], "attention_mask": mask[rows, -length:]}
            own = replace(noise, places=[noise.places[row] for row in rows])
            output = generate(**part, custom_generate=own.decode)[:, length:]
            written |= dict(zip(rows, output, strict=True))
        pad = asked["generation_config"].pad_token_id or 0
        behind = torch.nn.utils.rnn.pad_sequence([written[row] for row in range(len(ids))], True, pad)
        return torch.cat([ids, behind], 1)

    def decode(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        unproven: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """A decoding method for `generate(..., custom_generate=noise.decode)`; see there for the arguments.

        The race comes after every other processor, so temperature, top-k, top-p and the like have been applied.
        Where nothing is to be sampled (`do_sample=False`) the likeliest token wins, whatever the noise.
        The loop is ours where it can be (`why_plain`, `why_not_here`), else Transformers', with one warning; both draw
        the same tokens. With `unproven` it is ours or none.

        Raises:
            RuntimeError: a softmax that is not finite, in `torch.multinomial`'s words, for whoever explains those.
        """
        width = input_ids.shape[1]
        keys = self.keys(int(generation_config.max_length) - width).to(input_ids.device)
        race = Race(keys, width, takes_likeliest=not generation_config.do_sample)
        why = why_plain(model, input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs)
        if unproven and why is not None:
            raise RuntimeError(f"it does not receive what it reads: {why}")
        if why is None and not unproven:
            why = "that is asked for" if self.plainly else why_not_here()
        self.used.append(OUR_LOOP if why is None else THEIR_LOOP)
        if why is not None:
            if not self.plainly:
                say_why_plain(why)
            generation_config.do_sample = False  # a copy of this call's; the race's argmax is the sample
            output = _sample_and_note(
                model,
                input_ids,
                logits_processor,
                [race],
                self.notes,
                self.places,
                stopping_criteria=stopping_criteria,
                generation_config=generation_config,
                synced_gpus=self.synced_gpus,
                **model_kwargs,
            )
        else:
            eos, pad = generation_config._eos_token_tensor, generation_config._pad_token_tensor
            mask = model_kwargs.get("attention_mask")
            request = Request(
                input_ids=input_ids,
                contexts=unpad(input_ids, torch.ones_like(input_ids) if mask is None else mask),
                keys=race.keys_BL,
                race=race.run,
                processors=logits_processor,
                eos_ids=None if eos is None else eos.to(input_ids.device),
                pad_id=0 if pad is None else int(pad),
                rows_at_once=self.rows_at_once,
                synced_gpus=self.synced_gpus,
                inputs={"logits_to_keep": 1} if "logits_to_keep" in model_kwargs else {},
                cache_name=next(name for name in CACHES if name in model_kwargs),
                notes=self.notes,
                kept=self.kept,
                numbers=[row for row, _ in self.places],
            )
            output, logps, entropies = decode(model, request)
            if self.notes is not None:
                self.notes.add(self.places, request.contexts, output[:, width:], logps, entropies)
        if not race.finite:
            raise RuntimeError("the softmax cannot be sampled: the probability tensor contains `inf` or `nan`")
        return output


@cache
def say_why_plain(why: str) -> None:
    """Warn once that Transformers' own loop decodes, which is slower and records no entropies."""
    logger.warning(
        "Rollouts fall back to Transformers' own loop because of %s. The tokens are the same; it takes longer, and "
        "the student reads each batch once more (docs/rollouts.md).",
        why,
    )


def _sample_and_note(
    model: Any,
    input_ids: Tensor,
    processors: Sequence[Any],
    race: Sequence["Race"],
    notes: SamplerNotes | None,
    places: Sequence[Place] | None,
    **asked: Any,
) -> Any:
    """Transformers' own loop, over what comes out of `race` if there is one; what it draws is noted by its place."""
    draws, mask = Draws(), asked.get("attention_mask")
    noted = [] if notes is None or places is None else [draws]
    output = model._sample(input_ids, logits_processor=LogitsProcessorList([*processors, *noted, *race]), **asked)
    if notes is not None and places is not None and isinstance(output, Tensor):
        contexts = unpad(input_ids, torch.ones_like(input_ids) if mask is None else mask)
        draws.note(notes, places, contexts, output)
    return output


class Draws(LogitsProcessor):
    """Keeps the log-probabilities of the tokens that Transformers' own loop draws from the scores that it is given."""

    def __init__(self) -> None:
        self._logps_B: list[Tensor] = []
        self._last_BV: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._see(input_ids)
        self._last_BV = scores.float().log_softmax(-1)
        return scores

    def _see(self, ids: Tensor) -> None:
        if self._last_BV is not None:
            self._logps_B.append(self._last_BV.gather(-1, ids[:, -1:])[:, 0])

    def note(self, notes: SamplerNotes, places: Sequence[Place], contexts: Sequence[list[int]], output: Tensor) -> None:
        """Write down what was drawn, without endings that are one action: an id's own number is not the action's."""
        self._see(output)
        logps = torch.stack(self._logps_B, 1)
        tokens = output[:, -logps.shape[1] :]
        if len(notes.endings) > 1:
            logps = logps.masked_fill(torch.isin(tokens, torch.tensor(list(notes.endings)).to(tokens)), torch.nan)
        notes.add(places, contexts, tokens, logps, torch.full_like(logps, torch.nan))


@dataclass(eq=False)
class Race(LogitsProcessor):
    """Scores to π/E, whose largest entry is the drawn token."""

    keys_BL: Tensor  # int64, one key for each token to come
    width: int  # length of `input_ids` when the first of them is drawn
    takes_likeliest: bool = False  # nothing is drawn; the largest score is taken
    # were all softmaxes so far? On the device, as each reading would wait for it; not so are those of scores with NaN
    # or +∞, or with nothing but −∞
    finite: Tensor | bool = True

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.run(scores, self.keys_BL[:, input_ids.shape[1] - self.width])

    def run(self, scores_BV: Tensor, keys_B: Tensor) -> Tensor:
        """π/E of each row, with its key."""
        largest_B = scores_BV.amax(-1)
        self.finite = self.finite & largest_B.isfinite().all()
        return scores_BV if self.takes_likeliest else run_race(scores_BV, keys_B, largest_B)


def run_race(scores_BV: Tensor, keys_B: Tensor, largest_B: Tensor | None = None) -> Tensor:
    """exp(score − largest)/E, float32 [B, V]: row b's argmax is a draw from softmax(scores[b]); −∞ never wins.

    Args:
        scores_BV: log-probabilities up to a constant of each row.
        keys_B: one key for each row.
        largest_B: each row's largest score, where it is known.

    >>> scores = torch.tensor([0.7, 0.3]).log().expand(100_000, 2)
    >>> round(float(run_race(scores, torch.arange(100_000)).argmax(-1).float().mean()), 2)
    0.3
    """
    largest_B = scores_BV.amax(-1) if largest_B is None else largest_B
    steps_V = torch.arange(1, scores_BV.shape[-1] + 1, device=scores_BV.device) * _GAMMA
    rows = max(1, BLOCKS.get(scores_BV.device.type, BLOCKS["elsewhere"]) // len(steps_V))
    values_BV = scores_BV - largest_B[:, None]
    for values, keys in zip(values_BV.split(rows), keys_B.split(rows), strict=True):
        words = _splitmix(keys[:, None] + steps_V)
        uniforms = (words >> 11).bitwise_and_(2**53 - 1).to(torch.float32).add_(0.5).mul_(2.0**-53)
        # E = −log(1 − u), resolved to 2⁻⁵³ near 0, where races are won.
        values.exp_().div_(uniforms.clamp_max_(_LARGEST_UNIFORM).neg_().log1p_().neg_())
    return values_BV


def _splitmix(states: Tensor) -> Tensor:
    """SplitMix64's output for each state, int64 with wrap-around; overwrites `states`.

    PyTorch's shifts copy the sign; the masks take it away.
    """
    states.bitwise_xor_((states >> 30).bitwise_and_(2**34 - 1)).mul_(_FIRST)
    states.bitwise_xor_((states >> 27).bitwise_and_(2**37 - 1)).mul_(_SECOND)
    return states.bitwise_xor_((states >> 31).bitwise_and_(2**33 - 1))


@contextmanager
def decoding_through(model: Any, noise: AddressedNoise) -> Iterator[None]:
    """Inside, `model.generate` draws its tokens with `noise`: for hosts that call it without asking us.

    A model whose writing would differ from its reading is decoded in another way, or refused; see `writing`.
    """
    generate = model.generate

    def write(input_ids: Any = None, **asked: Any) -> Any:
        asked["input_ids"] = input_ids
        if asked.get("attention_mask") is None or asked["generation_config"].return_dict_in_generate:
            return generate(**asked, custom_generate=noise.decode)
        return noise.generate(KNOWN.get(model) or find_way(model, noise, generate, asked), generate, asked)

    with replaced(model, "generate", write):
        yield


@contextmanager
def drawing_without_address(
    model: Any, notes: SamplerNotes | None = None, places: Sequence[Place] | None = None, synced_gpus: bool = False
) -> Iterator[None]:
    """Inside, PyTorch's generator draws, or nothing does; a model whose writing would differ from its reading is
    refused. What is drawn is noted by its place, where one is known.
    """
    noise, generate = AddressedNoise(0, 0, SAMPLING_STREAM, []), model.generate

    def decode(
        model: Any, input_ids: Tensor, logits_processor: LogitsProcessorList, **asked: Any
    ) -> Any:  # as `AddressedNoise.decode`
        return _sample_and_note(model, input_ids, logits_processor, [], notes, places, synced_gpus=synced_gpus, **asked)

    def check_and_generate(input_ids: Any = None, **asked: Any) -> Any:
        check_padded(model, noise, generate, asked | {"input_ids": input_ids})
        return generate(input_ids=input_ids, **{"custom_generate": decode} | asked)

    with replaced(model, "generate", check_and_generate):
        yield
