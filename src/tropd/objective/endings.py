"""The ending of a response as one action, whichever id it is written with (semantic stop, arXiv 2609.20511).

Two models may end a response with different ids. With E the set of ids that end one for either of them,

    π̄(stop) = Σ_{e∈E} π(e),        π̄(v) = π(v) for v ∉ E,        a sampled e ∈ E counts as `stop`.

Done to the logits, whatever reads them reads π̄: `stop` stands where the first id of E was, with the logarithm of the
summed exponentials, and the others get the lowest finite number, whose exponential is 0 (an infinite one would make
0·∞). The gradient of `stop` spreads over E by what each id has of it. An E of one id, or of none, changes nothing.

Shapes: N tokens, V vocabulary, E the ids of the set.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Endings = tuple[int, ...]
"""The ids of E, in the same order for both models: the first of them stands for all."""


def one_action(logits_NV: Tensor, endings: Sequence[int]) -> Tensor:
    """Logits [N, V] of π̄, differentiable; in place where `logits_NV` carries no gradient.

    >>> one_action(torch.tensor([[0.5, 0.25, 0.25]]).log(), (0, 2)).softmax(-1)
    tensor([[0.7500, 0.2500, 0.0000]])

    Args:
        logits_NV: [N, V], float32 or wider.
        endings: E.
    """
    if len(endings) < 2:
        return logits_NV
    if not logits_NV.requires_grad:
        merge_(logits_NV, endings)
        return logits_NV
    ids = torch.tensor(endings, device=logits_NV.device)
    least = _least(logits_NV.dtype)
    merged_NE = torch.full_like(logits_NV[:, : len(ids)], least)
    merged_NE[:, 0] = logits_NV.index_select(-1, ids).clamp_min(least).logsumexp(-1)
    return logits_NV.index_copy(-1, ids, merged_NE)


@torch.no_grad()
def merge_(logits_NV: Tensor, endings: Sequence[int]) -> Tensor:
    """Make `logits_NV` those of π̄, in place.

    Returns:
        What each id had of `stop`, [N, E], for `spread_`.
    """
    least = _least(logits_NV.dtype)
    columns_NE = torch.stack([logits_NV[:, ending] for ending in endings], -1).clamp_min_(least)
    logits_NV[:, endings[0]] = columns_NE.logsumexp(-1)
    for ending in endings[1:]:
        logits_NV[:, ending] = least
    return columns_NE.softmax(-1)


def spread_(gradient_NV: Tensor, endings: Sequence[int], shares_NE: Tensor) -> None:
    """From the gradient in the logits of π̄ to that in the logits of π, in place; `shares_NE` as `merge_` gave them."""
    stop_N = gradient_NV[:, endings[0]].clone()
    for ending, share_N in zip(endings, shares_NE.unbind(-1), strict=True):
        gradient_NV[:, ending] = stop_N * share_N


def events_of(token_ids: Tensor, endings: Sequence[int]) -> Tensor:
    """The tokens as outcomes of π̄: any id of E becomes the first. Of any shape.

    >>> events_of(torch.tensor([5, 3, 2]), (2, 3)).tolist()
    [5, 2, 2]
    """
    for ending in endings[1:]:
        token_ids = token_ids.masked_fill(token_ids == ending, endings[0])
    return token_ids


def _least(dtype: torch.dtype) -> float:
    """A logit that no outcome has: finite, and still so when a float64 teacher is read in float32."""
    return max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)
