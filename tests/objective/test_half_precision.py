"""What float16 cannot hold before a loss scale arrives, and what a teacher cannot have written."""

import pytest
import torch

from tropd.objective import (
    Head,
    RegionCounts,
    TokenSignals,
    fused_loss,
    get_method,
    reduce_losses,
    student_terms,
    token_losses,
    topk_term,
)
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
    (logp, entropy, *_), *_ = _score_states(torch.randn(3, 4), head, torch.tensor([6, 5, 3]), 0, None)
    assert logp[0] == -torch.inf and logp[1:].isfinite().all() and entropy.isfinite().all()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("tail_mass", [1e-1, 1e-4, 1e-6, 1e-9, 1e-20])
@pytest.mark.parametrize("endings", [(), (0, 199)])
def test_a_small_tail_keeps_its_value_and_its_gradient_in_float32(tail_mass, fused, endings):
    """The student's mass outside of the top-k is added up; 1 minus the rest would be 0, without a gradient."""
    generator = torch.Generator().manual_seed(1)
    k, ids = 4, torch.arange(1, 5)
    logits = torch.randn(3, V, generator=generator, dtype=torch.float64)
    logits[:, ids] += 2.0
    outside = torch.ones(V, dtype=torch.bool).index_fill(0, ids, False)
    inside_mass = logits[:, ids].logsumexp(-1, keepdim=True)
    logits[:, outside] += inside_mass + torch.tensor(tail_mass).log() - logits[:, outside].logsumexp(-1, keepdim=True)
    teacher = torch.tensor([[0.4, 0.3, 0.1, 0.1]], dtype=torch.float64).log().expand(3, k)
    ones, zeros = torch.ones(3), torch.zeros(3)
    signals = TokenSignals(-5 * ones, -5.5 * ones, zeros, ones, zeros)
    method = get_method("fkl", fkl_truncation="tail", fkl_top_k=k)
    found = []
    for dtype in (torch.float32, torch.float64):
        states = logits.to(dtype).requires_grad_(True)
        term = topk_term(method, signals, torch.arange(3), ids.expand(3, k), teacher.to(dtype))
        head = Head(torch.eye(V, dtype=dtype), temperature=0.5, endings=endings)
        states = (states.detach() * 0.5).requires_grad_(True)
        counts, tokens = RegionCounts(0, 3, 0), torch.tensor([1, 9, 2])
        if fused:
            loss = fused_loss(states, head, tokens, method, signals, counts, term).loss
        else:
            logp, direct, _ = student_terms(states, head, tokens, term)
            loss = reduce_losses(token_losses(method, signals, logp, direct), counts, "shared")
        loss.backward()
        found.append((loss.detach().double(), states.grad.double()))
    (value, gradient), (exact_value, exact_gradient) = found
    torch.testing.assert_close(value, exact_value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, exact_gradient, rtol=1e-3, atol=1e-7)
    assert exact_gradient[:, outside].abs().sum() > 0.01, "the teacher's tail of 0.1 pulls at the student's"
