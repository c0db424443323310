"""The products of the head: exact logits from half precision, tiles of any size, and scans that reuse their room."""

import math

import pytest
import torch

from tropd import objective
from tropd.objective import Head
from tropd.objective.head import matmul


@pytest.fixture(params=["bfloat16 in hardware", "widened"])
def half_precision(request, monkeypatch):
    if request.param == "widened":
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(matmul, "TILE_ROWS", 16)


def some(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("num", "size", "width"), [(1, 1, 1), (1, 50, 64), (5, 16, 3), (40, 33, 300)])
def test_half_precision_logits_are_exact_to_two_to_the_minus_sixteen(half_precision, num, size, width):
    hidden, weight, bias = some(num, width), some(size, width), some(size)
    room = torch.full((num, size + 3), math.nan)[:, :size]
    raw = matmul.project_into(room, hidden, weight, bias)
    exact = hidden.double() @ weight.double().t() + bias.double()
    bound = 2**-16 * (hidden.double().abs() @ weight.double().abs().t() + 1)
    assert raw.dtype == torch.float32 and ((raw.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_products_of_the_backward_pass(half_precision, dtype):
    num, size, width = 7, 50, 12
    hidden, weight = some(num, width, dtype=dtype), some(size, width, dtype=dtype)
    grad = some(num, size, dtype=matmul.wide(dtype))
    expected = grad.double() @ weight.double(), 2 * grad.double().t() @ hidden.double()
    narrow = matmul.narrow_(grad.clone(), matmul.product_dtype(weight, of_gradient=True))
    assert narrow.dtype == matmul.product_dtype(weight, of_gradient=True)
    total = torch.full((size, width), math.nan, dtype=matmul.wide(dtype))
    matmul.add_weight_gradient(total, narrow, hidden, first=True)
    matmul.add_weight_gradient(total, narrow, hidden, first=False)
    tolerance = {torch.bfloat16: 0.01, torch.float32: 1e-6, torch.float64: 1e-14}[dtype]
    for ours, exact in zip((matmul.states_gradient(narrow, weight), total), expected, strict=True):
        assert (ours.double() - exact).norm() <= tolerance * exact.norm()


@pytest.mark.parametrize("block", [1, 40, 2**20])
def test_a_gradient_is_narrow_in_its_own_room(monkeypatch, block):
    monkeypatch.setitem(matmul.BLOCK_ELEMENTS, "cpu", block)
    grad = some(9, 13, dtype=torch.float32)
    expected, address = grad.bfloat16(), grad.data_ptr()
    narrow = matmul.narrow_(grad, torch.bfloat16)
    assert torch.equal(narrow, expected) and narrow.data_ptr() == address
    turned = some(9, 13, dtype=torch.float32).t()
    assert torch.equal(matmul.narrow_(turned, torch.bfloat16), turned.bfloat16())


@pytest.mark.parametrize(("num", "longest"), [(0, 3), (1, 3), (6, 3), (7, 3), (10, 4), (5, 100)])
def test_slices_are_nearly_equal_and_cover_the_tokens(num, longest):
    pieces = matmul.slices_of(num, longest)
    lengths = [piece.stop - piece.start for piece in pieces]
    assert [n for piece in pieces for n in range(piece.start, piece.stop)] == list(range(num))
    assert max(lengths) <= longest and max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("block", [1, 11, 40, 2**20])
@pytest.mark.parametrize("slice_tokens", [1, 4, None])
def test_a_scan_gives_what_the_differentiable_pass_gives(monkeypatch, block, slice_tokens):
    monkeypatch.setitem(matmul.BLOCK_ELEMENTS, "cpu", block)
    bias = some(11, dtype=torch.float64)
    bias[2] = -math.inf  # as a padded vocabulary's
    weight = some(11, 3, dtype=torch.float64)
    hidden, tokens = some(9, 3, dtype=torch.float64), torch.arange(9) % 2
    head = Head(weight, bias, softcap=None, temperature=0.7)
    scanned = objective.sampled_logps(hidden, head, tokens, slice_tokens=slice_tokens)
    passed = objective.sampled_logps(hidden.requires_grad_(True), head, tokens, slice_tokens=slice_tokens)
    assert passed[0].requires_grad and not scanned[0].requires_grad
    for ours, theirs in zip(scanned, passed, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-13)
