"""Linear maps whose weights are laid out once for a whole call, as oneDNN reads them fastest.

A step of decoding multiplies a few rows with every weight of the model, and on a CPU its time goes into reading them.
oneDNN's own layout takes a third to a half of that time in float32 and two thirds in bfloat16; and in float32, too, a
row comes out the same to the bit whatever rows are beside it. The copies pay after about six steps, and take the
memory of the weights: each is made when its layer is first called and goes with the call, so that a training step,
which holds gradients of that size later, does not grow.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SMALLEST = 2**16
"""Entries of a weight from which the layout pays: 256 by 256, where both ways take 17 µs for 8 rows."""

PAYS_FROM = 32
"""Tokens that rows may write from which packing pays, though most end earlier."""

LARGEST_SHARE = 1 / 8
"""Of the machine's memory, that the copies may take."""

_DTYPES = (torch.float32, torch.bfloat16)


@contextmanager
def packed_weights(model: nn.Module) -> Iterator[None]:
    """Inside, linear maps on a CPU read copies of their weights, which must not change meanwhile.

    Left as they are: small ones, other devices and dtypes, quantised and sharded weights, calls with gradient, and all
    of them where the copies would take more than `LARGEST_SHARE`.
    """
    layers = [module for module in model.modules() if type(module) is nn.Linear and _can_be_packed(module)]
    if sum(layer.weight.nbytes for layer in layers) > LARGEST_SHARE * _memory():
        layers = []
    try:
        for layer in layers:
            vars(layer)["forward"] = _Packed(layer)
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def _memory() -> int:
    """Bytes of the machine: not what is free, on which no rounding may depend."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _can_be_packed(module: nn.Linear) -> bool:
    return (
        type(module.weight.data) is Tensor
        and module.weight.device.type == "cpu"
        and module.weight.dtype in _DTYPES
        and module.weight.numel() >= SMALLEST
        and "forward" not in vars(module)  # somebody else's
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")  # where it was measured, and its elder
    )


class _Packed:
    """One layer's forward."""

    def __init__(self, layer: nn.Linear):
        self._layer = layer
        self._copies: dict[torch.dtype, tuple[Tensor, Tensor | None]] = {}

    def __call__(self, input: Tensor) -> Tensor:
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else self._layer.weight.dtype
        if torch.is_grad_enabled() or not _computes_in(dtype) or (input.dtype != dtype and not autocast):
            return nn.Linear.forward(self._layer, input)
        if dtype not in self._copies:
            self._copies[dtype] = self._copy(dtype)
        weight, bias = self._copies[dtype]
        product: Tensor = torch.ops.mkldnn._linear_pointwise(input.to(dtype), weight, bias, "none", [], "")
        return product

    def _copy(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        weight, bias = self._layer.weight.to(dtype), self._layer.bias
        return torch.ops.mkldnn._reorder_linear_weight(weight), None if bias is None else bias.to(dtype)


def _computes_in(dtype: torch.dtype) -> bool:
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
