"""The three matrix products of an output layer: logits, and a logit gradient's share of the states' and the weight's.

Logits are never rounded to half precision. On a CPU, products go by tiles of the weight's rows, which stay in cache and
bound what a widened copy takes. Where a processor multiplies bfloat16 itself (AVX512-BF16, AMX), PyTorch has no product
with a float32 result, so logits take two: the rounded one, and the remainder `h·Wᵀ − rounded`, itself rounded; together
they are within 2⁻¹⁶ of Σ|h·w|.

Shapes: C tokens of one slice, H hidden size, V vocabulary.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

TILE_ROWS = 2048
"""Rows of the weight in one product on a CPU: 8 MiB in float32 at a hidden size of 1024."""

BLOCK_ELEMENTS = {"cpu": 2**18, "gpu": 2**24}
"""Logits that are worked on together: what a processor's cache holds; on a GPU more, so that launches are few."""

HALF = (torch.float16, torch.bfloat16)
"""What a GPU multiplies itself, with a float32 result where it is asked for one."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision and float32, float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def product_dtype(weight: Tensor, *, of_gradient: bool = False) -> torch.dtype:
    """The dtype in which products with `weight` are made: its own where the device multiplies that quickly and sums in
    float32, else the wide one.

    Of a logit gradient never float16, whose smallest numbers are larger than many a gradient before a loss scale has
    been applied.
    """
    if weight.is_cuda and weight.dtype in HALF:
        quick = not (of_gradient and weight.dtype == torch.float16)
    else:
        # Private to PyTorch, so its absence means no; AMX comes with AVX512-BF16. Without oneDNN the product is slow.
        supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        onednn: Any = torch.backends.mkldnn
        on_cpu = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
        quick = on_cpu and onednn.is_available() and onednn.enabled and supported()
    return weight.dtype if quick else wide(weight.dtype)


def project_into(raw_CV: Tensor, hidden_CH: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """raw ← hidden · weightᵀ + bias, in float32 (float64 for float64 weights); returns `raw_CV`.

    Args:
        raw_CV: [C, V], of `wide(weight.dtype)`; overwritten.
        hidden_CH: [C, H].
        weight: [V, H].
        bias: [V] or `None`.
    """
    hidden_CH = hidden_CH.to(weight.dtype).to(product_dtype(weight))
    for tile in _tiles(weight):
        raw_CT, weight_TH = raw_CV[:, tile], weight[tile]
        if weight.is_cuda and weight.dtype in HALF:
            torch.mm(hidden_CH, weight_TH.t(), out_dtype=torch.float32, out=raw_CT)
        elif hidden_CH.dtype == raw_CT.dtype:
            torch.mm(hidden_CH, weight_TH.to(raw_CT.dtype).t(), out=raw_CT)
        else:
            rounded = torch.mm(hidden_CH, weight_TH.t())
            raw_CT.copy_(rounded)
            raw_CT += torch.addmm(rounded, hidden_CH, weight_TH.t(), beta=-1)
        if bias is not None:
            raw_CT += bias[tile].to(raw_CT.dtype)
    return raw_CV


def narrow_(grad_CV: Tensor, dtype: torch.dtype) -> Tensor:
    """`grad_CV` as [C, V] of a narrower `dtype`, written over `grad_CV` itself, whose values are lost."""
    if not grad_CV.is_contiguous():
        return grad_CV.to(dtype)
    narrow_CV = grad_CV.view(dtype)[:, : grad_CV.shape[1]]
    for rows in blocks_of(grad_CV):
        narrow_CV[rows] = grad_CV[rows].to(dtype)  # through a copy: they share memory
    return narrow_CV


def states_gradient(grad_CV: Tensor, weight: Tensor) -> Tensor:
    """grad · weight, [C, H]; `grad_CV` is of the gradient's `product_dtype`. Rounded at most once, at the end."""
    if grad_CV.is_cuda and grad_CV.dtype in HALF:
        return torch.mm(grad_CV, weight, out_dtype=torch.float32)
    if grad_CV.dtype == weight.dtype:
        return torch.mm(grad_CV, weight)
    grad = grad_CV.new_zeros(grad_CV.shape[0], weight.shape[1])
    for tile in _tiles(weight):
        grad.addmm_(grad_CV[:, tile], weight[tile].to(grad.dtype))
    return grad


def add_weight_gradient(grad_weight: Tensor, grad_CV: Tensor, hidden_CH: Tensor, *, first: bool) -> None:
    """grad_weight += gradᵀ · hidden, summed over slices in float32.

    Args:
        grad_weight: [V, H] of the wide dtype; changed in place.
        grad_CV: [C, V] of `product_dtype`. In bfloat16 on a CPU a slice's product is rounded once, relative 2⁻⁹.
        hidden_CH: [C, H].
        first: write the product over what `grad_weight` holds, which need not be initialised.
    """
    hidden_CH = hidden_CH.to(grad_CV.dtype)
    for tile in _tiles(grad_weight):
        grad_TH, grad_TC = grad_weight[tile], grad_CV[:, tile].t()
        if grad_TC.dtype == grad_TH.dtype:
            torch.addmm(grad_TH, grad_TC, hidden_CH, beta=0 if first else 1, out=grad_TH)
        elif grad_TC.is_cuda:
            torch.addmm(grad_TH, grad_TC, hidden_CH, beta=0 if first else 1, out_dtype=torch.float32, out=grad_TH)
        elif first:
            grad_TH.copy_(torch.mm(grad_TC, hidden_CH))
        else:
            grad_TH += torch.mm(grad_TC, hidden_CH)


def slices_of(num_tokens: int, slice_tokens: int) -> list[slice]:
    """Consecutive slices of nearly equal length, none longer than `slice_tokens`."""
    # One empty slice for no tokens at all: what is made of the slices keeps its shape and dtype.
    count = max(1, math.ceil(num_tokens / slice_tokens))
    bounds = [num_tokens * number // count for number in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


def blocks_of(logits_CV: Tensor) -> list[slice]:
    """The rows in blocks that are worked on together, see `BLOCK_ELEMENTS`."""
    elements = BLOCK_ELEMENTS["cpu" if logits_CV.device.type == "cpu" else "gpu"]
    return slices_of(logits_CV.shape[0], max(1, elements // max(1, logits_CV.shape[1])))


def _tiles(weight: Tensor) -> Iterator[slice]:
    size = weight.shape[0]
    rows = TILE_ROWS if weight.device.type == "cpu" else max(size, 1)
    return (slice(start, min(start + rows, size)) for start in range(0, size, rows))
