"""What our decoding loop leaves to Transformers' own: asked of a call before anything is computed, by capability.

Rows that move, leave and share a context need attention over tokens whose columns can be aligned, and processors that
look at one row at a time. R counts the rows of a call, W the columns of its contexts.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import logits_process, stopping_criteria

from .slot_cache import can_move_rows

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
_INPUTS = {"attention_mask", "position_ids", *CACHES, "use_cache", "logits_to_keep"}


def why_plain(
    model: Any,
    input_ids: Tensor,
    processors: Sequence[Any],
    criteria: Sequence[Any],
    config: GenerationConfig,
    given: dict[str, Any],
) -> str | None:
    """What of a call needs Transformers' own loop, in words; `None` if nothing does.

    Args:
        model: what is asked to generate.
        input_ids: [R, W].
        processors: all logits processors of the call.
        criteria: its stopping criteria.
        config: its settings.
        given: its keyword arguments for the model.
    """
    known = (*READ_SCORES, *READ_IDS)
    reasons = {
        "a cache whose rows cannot be moved": not can_move_rows(given.get(cache_name(given))),
        "decoding without a cache": not given.get("use_cache"),
        "inputs beside token ids": any(given[name] is not None for name in given.keys() - _INPUTS),
        "scores, states or attention in the output": bool(config.return_dict_in_generate),
        "a prefill in chunks": config.prefill_chunk_size is not None,
        "a logits processor that may know the batch": any(type(one) not in known for one in processors),
        "another stopping criterion than length and end": any(type(one) not in _ENDINGS for one in criteria),
    }
    found = [reason for reason, holds in reasons.items() if holds]
    return found[0] if found else _why_not_this_model(model, input_ids, given)


def cache_name(given: dict[str, Any]) -> str:
    """Under which name a call's cache goes to the model."""
    return next((name for name in CACHES if name in given), CACHES[0])


def _why_not_this_model(model: Any, input_ids: Tensor, given: dict[str, Any]) -> str | None:
    prepares = getattr(model.prepare_inputs_for_generation, "__func__", None)
    reasons = {
        "inputs that the model prepares in its own way": prepares is not GenerationMixin.prepare_inputs_for_generation,
        "attention in chunks": getattr(model.config.get_text_config(), "attention_chunk_size", None) is not None,
        "gradient checkpointing": model.training and _checkpoints(model),
        "ids on another device than the model's": input_ids.device != model.device,
        "positions that are not counted from a mask": not _counts_from_mask(input_ids, given),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _checkpoints(model: Any) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _counts_from_mask(input_ids: Tensor, given: dict[str, Any]) -> bool:
    """Is every context padded on the left, if at all, and are its positions 0, 1, …?"""
    position_ids, mask = given.get("position_ids"), given.get("attention_mask")
    if position_ids is None or position_ids.dim() != 2:
        return False
    if mask is None:
        return bool((position_ids.diff(dim=1) == 1).all() and (position_ids[:, 0] == 0).all())
    padded_left = bool((mask.diff(dim=1) >= 0).all() and (mask[:, -1] == 1).all())
    return padded_left and bool((position_ids == (mask.long().cumsum(-1) - 1).clamp_min(0)).all())
