"""The one policy-gradient surrogate behind every K1 term. N tokens."""

import torch
from torch import Tensor

from .shapes import check_same_shape


def policy_gradient_loss(
    student_logp_N: Tensor, rollout_logp_N: Tensor, advantage_N: Tensor, ratio_clip: float | None = None
) -> Tensor:
    """−(π_S/π_old)·A per token, [N]; gradient −(π_S/π_old)·A·∇log π_S (OPD, Thinking Machines, Oct 2025).

    >>> logp = torch.tensor([-1.0, -2.0], requires_grad=True)
    >>> policy_gradient_loss(logp, logp.detach(), torch.tensor([0.5, -1.5])).sum().backward()
    >>> logp.grad  # the ratio is 1: minus the advantage
    tensor([-0.5000,  1.5000])

    Args:
        student_logp_N: log π_S of the sampled tokens, differentiable.
        rollout_logp_N: log π_old, the policy that sampled; equal to a detached `student_logp_N` on the first update
            of a batch, where the ratio is exactly 1.
        advantage_N: detached here, since an advantage that carries gradient would be another objective.
        ratio_clip: PPO's ε, −min(ρA, clip(ρ, 1−ε, 1+ε)A), for several updates per batch; `None` leaves ρ alone.

    Raises:
        ValueError: the three differ in shape.
    """
    check_same_shape(student_logp_N=student_logp_N, rollout_logp_N=rollout_logp_N, advantage_N=advantage_N)
    ratio = torch.exp(student_logp_N - rollout_logp_N.detach())
    advantage = advantage_N.detach()
    if ratio_clip is None:
        return -ratio * advantage
    clipped = ratio.clamp(1 - ratio_clip, 1 + ratio_clip)
    return -torch.minimum(ratio * advantage, clipped * advantage)
