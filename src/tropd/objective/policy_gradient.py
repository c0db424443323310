"""The one policy-gradient surrogate behind every K1 term. N tokens."""

import torch
from torch import Tensor


def policy_gradient_loss(
    student_logp_N: Tensor, rollout_logp_N: Tensor, advantage_N: Tensor, ratio_clip: float | None = None
) -> Tensor:
    """−(π_S/π_old)·A per token, [N]; gradient −(π_S/π_old)·A·∇log π_S (OPD, section 2 of the method page).

    Args:
        student_logp_N: log π_S of the sampled tokens, differentiable.
        rollout_logp_N: log π_old, the policy that sampled; equal to a detached `student_logp_N` on the first update
            of a batch, where the ratio is exactly 1.
        advantage_N: detached here, since an advantage that carries gradient would be another objective.
        ratio_clip: PPO's ε, −min(ρA, clip(ρ, 1−ε, 1+ε)A), for several updates per batch; `None` leaves ρ alone.
    """
    ratio = torch.exp(student_logp_N - rollout_logp_N.detach())
    advantage = advantage_N.detach()
    if ratio_clip is None:
        return -ratio * advantage
    clipped = ratio.clamp(1 - ratio_clip, 1 + ratio_clip)
    return -torch.minimum(ratio * advantage, clipped * advantage)
