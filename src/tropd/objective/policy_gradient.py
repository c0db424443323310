"""The policy-gradient surrogate of every K1 term, the advantages made from r, and their scale. N tokens."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .method_parts import ADVANTAGES
from .shapes import check_same_shape


def sampled_advantage(kind: str, rollout_logp_N: Tensor, teacher_logp_N: Tensor, alpha: float | None = None) -> Tensor:
    """The advantage of a sampled token under K1, [N], detached.

    >>> rollout, teacher = torch.tensor([0.5, 0.4]).log(), torch.tensor([0.1, 0.8]).log()
    >>> sampled_advantage("log_ratio", rollout, teacher)
    tensor([-1.6094,  0.6931])
    >>> sampled_advantage("mixture", rollout, teacher, 0.2)  # log(0.2 · 0.2 + 0.8), log(0.2 · 2 + 0.8)
    tensor([-0.1744,  0.1823])
    >>> sampled_advantage("power", rollout, teacher, 2.0), sampled_advantage("sign", rollout, teacher)
    (tensor([-0.2400,  0.4800]), tensor([-1.,  1.]))

    Args:
        kind: `log_ratio`, r; `mixture`, log(α ρ + 1 − α), r against the mixture α π_T + (1−α) π_S (TOP-D, arXiv
            2607.04751); `power`, π_T^α − π_S^α (PowerOPD, arXiv 2606.17199); `sign`, that of r (TV-OPD, arXiv
            2609.08341; its coefficient is `AdvantageScale`).
        rollout_logp_N: log π_old.
        teacher_logp_N: log π_T.
        alpha: α of `mixture`, in (0, 1], and of `power`.

    Raises:
        ValueError: the two differ in shape, an unknown kind, or one that needs α without it.
    """
    check_same_shape(rollout_logp_N=rollout_logp_N, teacher_logp_N=teacher_logp_N)
    rollout, teacher = rollout_logp_N.detach(), teacher_logp_N.detach()
    if kind == "log_ratio":
        return teacher - rollout
    if kind == "sign":
        return torch.sign(teacher - rollout)
    if kind == "mixture" and alpha is not None:
        rest = math.log1p(-alpha) if alpha < 1 else -math.inf
        return torch.logaddexp(teacher - rollout + math.log(alpha), torch.full_like(teacher, rest))
    if kind == "power" and alpha is not None:
        return torch.exp(alpha * teacher) - torch.exp(alpha * rollout)
    if kind in ADVANTAGES:
        raise ValueError(f"advantage {kind!r} needs `alpha`, which is None")
    raise ValueError(f"advantage is {kind!r}; choose one of {', '.join(ADVANTAGES)}")


SCALE_DECAY, SCALE_POWER, SCALE_FLOOR = 0.95, 0.5, 0.1
"""Of TV-OPD: the decay of its running mean, its α, and the least coefficient."""

SCALE_EPSILON = 1e-8
"""TV-OPD's ε. The value is ours: we know of no published one."""


@dataclass(frozen=True)
class AdvantageScale:
    """TV-OPD's coefficient of a batch, from the batches before it (arXiv 2609.08341). Plain numbers, no tensors.

    c_k = clip(((D̄_{k−1} + ε) / (D_ref + ε))^α, 0.1, 1) with D̄_k = 0.95 D̄_{k−1} + 0.05 d_k and D̄_0 = D_ref = d_0. Here
    d_k is the mean of [1 − e^r]₊ = 1 − min(ρ, 1) over the student tokens of batch k, which estimates the total
    variation without bias. So the first two batches have c = 1.

    >>> scale = AdvantageScale()
    >>> for total_variation in (0.4, 0.0, 0.0):
    ...     print(round(scale.value, 4))
    ...     scale = scale.after(total_variation)
    1.0
    1.0
    0.9747

    Attributes:
        mean: D̄ after the latest batch, in [0, 1]; `None` before the first.
        reference: D_ref, that of the first batch.
    """

    mean: float | None = None
    reference: float | None = None

    @property
    def value(self) -> float:
        """c of the batch to come."""
        if self.mean is None or self.reference is None:
            return 1.0
        ratio = (self.mean + SCALE_EPSILON) / (self.reference + SCALE_EPSILON)
        return min(max(math.pow(ratio, SCALE_POWER), SCALE_FLOOR), 1.0)

    def after(self, total_variation: float) -> "AdvantageScale":
        """The scale once a batch has been measured, of which this is the estimate d_k."""
        if self.mean is None:
            return AdvantageScale(total_variation, total_variation)
        # In this form the mean of a constant is the constant, whatever the rounding.
        return replace(self, mean=self.mean + (1 - SCALE_DECAY) * (total_variation - self.mean))


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
