"""Does a model write what a plain forward pass reads? Measured on a call's own contexts, once for each model.

A batch is padded on the left and decoded step by step with a cache. A model that reads past the padding, or whose step
computes something else than its forward, writes from another distribution than the one it is scored with, and no number
of the run would show it. Contexts of two lengths are decoded and read again, each alone and in one pass; where the two
differ the next of a few ways to decode is tried, and where all do the model is refused. R counts the rows of a call, W
the columns of its contexts, L the tokens that are written.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...models.hidden_states import rotates_by_length
from ...models.sampling import sample
from .loop import SamplerNotes

if TYPE_CHECKING:
    from .noise import AddressedNoise

logger = logging.getLogger(__name__)

NEW_TOKENS = 6
LONGEST = 1024
"""Tokens of a context that is decoded for the measurement, at most."""
SLACK = 1e-3
"""Nats of a token, for sums of another order in float32."""
ROUNDINGS = 8.0
"""Roundings of the largest logit by which a token may differ in the mean, since each layer rounds."""
TF32 = 2.0**-11


class Way(NamedTuple):
    """How rows are decoded."""

    plainly: bool  # by Transformers' own loop, also where ours could
    # which rows are decoded together: all; those of one length, so that none is padded; or each alone
    apart: Literal["", "lengths", "rows"]


WAYS = (Way(False, ""), Way(True, ""), Way(True, "lengths"), Way(True, "rows"))

KNOWN: WeakKeyDictionary[Any, Way] = WeakKeyDictionary()
"""The way of each model that was measured: what it writes may change with its weights, how it computes does not."""


def check_padded(model: Any, noise: "AddressedNoise", generate: Callable, asked: dict[str, Any]) -> None:
    """Refuse a model that does not write what it reads when it is decoded as it is, rows padded on the left.

    Raises:
        ValueError: it does in another way, or in none.
    """
    if asked.get("attention_mask") is None or asked["generation_config"].return_dict_in_generate:
        return
    if (KNOWN.get(model) or find_way(model, noise, generate, asked)).apart:
        raise ValueError(
            f"addressed_sampling is False, but a {type(model).__name__} samples from a different distribution than it "
            "is scored with if rows of different lengths are decoded together. Remove addressed_sampling: then they "
            "are decoded separately."
        )


# ---------------------------------------------------------------------- the measurement


def find_way(model: Any, noise: "AddressedNoise", generate: Callable, asked: dict[str, Any]) -> Way:
    """The first way in which a model writes what it reads; measured with a call's contexts, and kept in `KNOWN`.

    Raises:
        ValueError: in no way does it.
    """
    base = getattr(model, "get_base_model", lambda: model)()
    if rotates_by_length(base):  # a cache and a plain pass are two models there, both of them right
        KNOWN[model] = WAYS[0]
        return WAYS[0]
    gaps: list[float] = []
    with _without_noise(base):
        for way in WAYS:
            if way.apart and noise.synced_gpus:  # processes that wait for each other make the same calls
                continue
            gap, allowed = _gap(model, noise, generate, asked, way)
            if gap is not None and gap <= allowed:
                _tell(base, way, gaps)
                KNOWN[model] = way
                return way
            gaps += [] if gap is None else [gap]
    raise ValueError(_no_way(base, min(gaps, default=math.inf)))


@contextmanager
def _without_noise(model: Any) -> Iterator[None]:
    """Evaluation mode inside: dropout that somebody has asked for makes any two passes differ."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _no_way(model: Any, gap: float) -> str:
    return (
        f"a {type(model).__name__} does not sample from its own softmax: decoding with a cache and a plain forward "
        f"pass differ by {gap:.2g} nats per token on average, so every score of its rollouts would be "
        "wrong. Use a model of a different family, or a different version of Transformers."
    )


def _tell(model: Any, way: Way, gaps: Sequence[float]) -> None:
    if not gaps:  # the first that noted anything
        return
    together = {"": "Transformers' own loop decodes", "lengths": "prompts of different lengths are decoded separately"}
    logger.warning(
        "A %s decoded in a padded batch samples from a different distribution than a plain forward pass: %.2g nats "
        "per token on average. So %s, which takes longer.",
        type(model).__name__,
        gaps[0],
        together.get(way.apart, "each row is decoded separately"),
    )


def _contexts(asked: dict[str, Any]) -> list[list[int]]:
    """The longest context of a call and its latter half, and both reversed, so that each length occurs twice."""
    rows = zip(asked["input_ids"].tolist(), asked["attention_mask"].tolist(), strict=True)
    texts = [[token for token, kept in zip(ids, mask, strict=True) if kept] for ids, mask in rows]
    longest = max(texts, key=len)[-LONGEST:]
    longest = longest if len(longest) > 1 else longest * 2
    half = longest[len(longest) // 2 :]
    return [longest, half, longest[::-1], half[::-1]]


@torch.no_grad()
def _gap(
    model: Any, noise: "AddressedNoise", generate: Callable, asked: dict[str, Any], way: Way
) -> tuple[float | None, float]:
    """Mean |noted − read| of a token (`None` where nothing was noted), and how much of it may be rounding."""
    contexts, notes, config = _contexts(asked), SamplerNotes(temperature=1.0), asked["generation_config"]
    trial = replace(
        noise,
        places=[(row, 0) for row in range(len(contexts))],
        notes=notes,
        kept=None,
        used=[],
    )
    stand_in = _Generating(model, lambda **asked: trial.generate(way, generate, asked))
    pad, eos = config.pad_token_id or 0, config.eos_token_id
    ends = list(eos) if isinstance(eos, list | tuple) else [pad if eos is None else eos]
    written = sample(stand_in, contexts, max_new_tokens=NEW_TOKENS, eos_ids=ends, pad_id=pad)
    gaps, allowed = [], 0.0
    for row, (context, response) in enumerate(zip(contexts, written, strict=True)):
        with _autocast_inside(model) as autocast:
            logits = _logits(model, context, response)
        plain = logits.float().log_softmax(-1).gather(-1, torch.tensor(response, device=logits.device)[:, None])[:, 0]
        largest = float(logits.abs().max().nan_to_num())
        allowed = max(allowed, SLACK + ROUNDINGS * _rounding(model, logits, autocast) * largest)
        noted = notes.of(row, context, response)
        if noted is not None:
            gaps.append((torch.tensor(noted.logps) - plain.cpu()).abs())
    mean = float(torch.cat(gaps).nanmean()) if gaps else float("nan")
    return (None if mean != mean else mean), allowed


class _Generating:
    """A model with another `generate`, for `sample`."""

    def __init__(self, model: Any, generate: Callable):
        self._model, self.generate = model, generate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _logits(model: Any, context: list[int], response: list[int]) -> Tensor:
    """The model's own [L, V], of one pass over one unpadded row."""
    ids = torch.tensor([context + response], device=model.device)
    kept = {"logits_to_keep": len(response) + 1} if getattr(model, "_supports_logits_to_keep", bool)() else {}
    logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **kept).logits[0]
    return logits[-len(response) - 1 : -1]


@contextmanager
def _autocast_inside(model: Any) -> Iterator[set[torch.dtype]]:
    """The half precision that passes in the block compute in: accelerate switches it on within a model's forward."""
    seen: set[torch.dtype] = set()

    def look(module: Any, args: tuple[Tensor, ...]) -> None:
        device = args[0].device.type
        if torch.is_autocast_enabled(device):
            seen.add(torch.get_autocast_dtype(device))

    handle = model.get_input_embeddings().register_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def _rounding(model: Any, logits: Tensor, autocast: set[torch.dtype]) -> float:
    dtypes = {logits.dtype, *autocast, *(parameter.dtype for parameter in model.parameters())}
    coarse = max(torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point)
    return coarse if logits.device.type == "cpu" else max(coarse, TF32)
