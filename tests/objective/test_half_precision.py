"""What float16 cannot hold before a loss scale arrives, and what a teacher cannot have written."""

import pytest
import torch

from tropd.objective import Head, RegionCounts, TokenSignals, fused_loss, get_method
from tropd.teacher.local import _score_states

N, H, V = 24, 32, 200


@pytest.mark.parametrize("tokens_of_the_step", [1_000, 1_000_000])
@pytest.mark.parametrize("scale", [1.0, 2.0**16])
def test_gradients_in_float16_do_not_underflow_before_the_loss_scale(tokens_of_the_step, scale):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, H, generator=generator).half() for rows in (N, V))
    tokens = torch.randint(V, (N,), generator=generator)
    ones, zeros = torch.ones(N), torch.zeros(N)
    signals = TokenSignals(-5 * ones, -5.5 * ones, ones, zeros, zeros)
    counts = RegionCounts(tokens_of_the_step, 0, 0)
    gradients = []
    for dtype in (torch.float16, torch.float64):
        states = hidden.detach().clone().to(dtype).requires_grad_(True)
        head = Head(weight.detach().clone().to(dtype).requires_grad_(True))
        (fused_loss(states, head, tokens, get_method("opd"), signals, counts).loss * scale).backward()
        gradients.append((states.grad.double(), head.weight.grad.double()))
    for ours, exact in zip(*gradients, strict=True):
        held = exact.abs() > 2.0**-14  # the smallest number that float16 holds at full precision
        assert not scale > 1 or held.any(), "a loss scale is there so that it can be held"
        torch.testing.assert_close(ours[held], exact[held], rtol=2e-3, atol=0)
        lost = (ours == 0) & (exact.abs() > 2.0**-23)
        assert not lost.any(), f"{lost.float().mean():.1%} of the gradient is gone"


@pytest.mark.parametrize("endings", [(), (3, 5)])
def test_a_teacher_that_rules_a_token_out_has_no_finite_score_for_it(endings):
    bias = torch.zeros(8)
    bias[6] = -torch.inf
    head = Head(torch.randn(8, 4), bias, endings=endings)
    logp, entropy, *_ = _score_states(torch.randn(3, 4), head, torch.tensor([6, 5, 3]), 0, None)
    assert logp[0] == -torch.inf and logp[1:].isfinite().all() and entropy.isfinite().all()
