"""Which tokens to believe: the trust region and its gates.

r = log π_T(x) − log π_old(x) of a student-sampled token is the *log ratio*; the region machinery reads it detached.
A gate turns it into a *trust weight* in [0, 1]; what is left, 1 − weight, is the outlier weight. Hard regions have
weights 0 and 1. Any shape; entries line up with tokens.
"""

import math

import torch
from torch import Tensor

from .method_parts import GATES
from .shapes import check_rows, check_same_shape


def trust_probability(log_ratio: Tensor) -> Tensor:
    """P_trust = min(π_T/π_S, 1), the acceptance test of speculative decoding.

    TrOPD, arXiv 2606.01249, trust region. Its mean over student samples is 1 − TV(π_S, π_T).

    >>> trust_probability(torch.tensor([-1.0, 0.0, 2.0]))
    tensor([0.3679, 1.0000, 1.0000])
    """
    return torch.exp(log_ratio.detach().clamp_max(0.0))


def trust_weight(
    gate: str,
    log_ratio: Tensor,
    *,
    uniforms: Tensor | None = None,
    tau: float | None = None,
    selected: Tensor | None = None,
) -> Tensor:
    """The weight in [0, 1] with which each token is trusted, in the dtype of `log_ratio`, detached.

    >>> log_ratio = torch.tensor([-3.0, -1.0, 0.5])
    >>> trust_weight("bernoulli", log_ratio, uniforms=torch.tensor([0.2, 0.2, 0.2]))
    tensor([0., 1., 1.])
    >>> trust_weight("hard", log_ratio, tau=-2.0)
    tensor([0., 1., 1.])

    Args:
        gate: `bernoulli`, M = 1[u < P_trust], the paper's; `expected`, P_trust itself (the Bernoulli gate averaged
            out); `hard`, 1[r > τ]; `floor`, 1[r ≥ τ] (REOPOLD, arXiv 2603.11137, phase I); `student_entropy`,
            `teacher_entropy` and `support`, the tokens in `selected`; `open` and `closed`, every token or none.
        log_ratio: r, any shape.
        uniforms: draws in [0, 1) for `bernoulli`, addressed by (seed, step, row, position).
        tau: threshold in nats for `hard` and `floor`.
        selected: trusted tokens for the entropy gates and for `support`, boolean.

    Raises:
        ValueError: an unknown gate, a number that the gate needs and that is `None`, or another shape than `log_ratio`.
    """
    check_same_shape(log_ratio=log_ratio, uniforms=uniforms, selected=selected)
    if gate == "open":
        return torch.ones_like(log_ratio)
    if gate == "closed":
        return torch.zeros_like(log_ratio)
    if gate == "expected":
        return trust_probability(log_ratio)
    if gate == "bernoulli" and uniforms is not None:
        return (uniforms < trust_probability(log_ratio)).to(log_ratio.dtype)
    if gate == "hard" and tau is not None:
        return (log_ratio > tau).to(log_ratio.dtype)
    if gate == "floor" and tau is not None:
        return (log_ratio >= tau).to(log_ratio.dtype)
    if gate in ("student_entropy", "teacher_entropy", "support") and selected is not None:
        return selected.to(log_ratio.dtype)
    if gate in GATES:
        needed = {"bernoulli": "uniforms", "hard": "tau", "floor": "tau"}.get(gate, "selected")
        raise ValueError(f"gate {gate!r} needs `{needed}`, which is None")
    raise ValueError(f"gate is {gate!r}; choose one of {', '.join(GATES)}")


def in_support(token_ids_N: Tensor, topk_ids_NK: Tensor, topk_logp_NK: Tensor) -> Tensor:
    """bool [N]: is the token among the teacher's top-k, the support of ResOPD (arXiv 2610.04882)?

    >>> ids, logp = torch.tensor([[2, 5], [1, 5]]), torch.tensor([[-0.1, -3.0], [0.0, -torch.inf]])
    >>> in_support(torch.tensor([2, 5]), ids, logp)
    tensor([ True, False])

    Args:
        token_ids_N: the sampled tokens, any ending as the first of its set.
        topk_ids_NK: of the teacher's top-k.
        topk_logp_NK: what the teacher gives them; −inf is outside of the support.

    Raises:
        ValueError: shapes that do not fit.
    """
    check_same_shape(topk_ids_NK=topk_ids_NK, topk_logp_NK=topk_logp_NK)
    check_rows(token_ids_N, 1, topk_ids_NK=topk_ids_NK)
    return ((topk_ids_NK == token_ids_N.unsqueeze(-1)) & (topk_logp_NK > -torch.inf)).any(-1)


def union_of_supports(student_logps_NV: Tensor, teacher_logps_NV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The teacher's top-k joined with the student's top-k, as a support for ResOPD; detached.

    >>> student, teacher = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0.1, 0.3, 0.6]]).log()
    >>> ids, logp = union_of_supports(student, teacher, 1)
    >>> ids, logp.exp()
    (tensor([[2, 0]]), tensor([[0.6000, 0.1000]]))

    Args:
        student_logps_NV: whole distributions [N, V].
        teacher_logps_NV: likewise.
        k: of each.

    Returns:
        ids [N, 2k], and what the teacher gives them [N, 2k]. Where a token is in both, and where the teacher gives no
        probability, the id is the teacher's first and its log-probability −inf, which is outside of the support.

    Raises:
        ValueError: the two differ in shape.
    """
    check_same_shape(least_axes=1, student_logps_NV=student_logps_NV, teacher_logps_NV=teacher_logps_NV)
    student, teacher = student_logps_NV.detach(), teacher_logps_NV.detach()
    k = min(k, teacher.shape[-1])
    ids = torch.cat([teacher.topk(k).indices, student.topk(k).indices], -1)
    repeated = (ids[..., k:, None] == ids[..., None, :k]).any(-1)
    logp = teacher.gather(-1, ids)
    logp[..., k:].masked_fill_(repeated, -torch.inf)
    return torch.where(logp == -torch.inf, ids[..., :1], ids), logp


def top_share_threshold(values: Tensor, share: float) -> float:
    """The value that the top `share` of `values` reaches: the ⌈share·n⌉-th largest (+inf for no values).

    Used for "the 20% of tokens with the highest entropy" (Entropy OPD of TrOPD, arXiv 2606.01249, comparison table;
    REOPOLD, arXiv 2603.11137, phase II) over the *global* batch; tokens that tie with the threshold are all in.

    >>> top_share_threshold(torch.tensor([0.1, 0.9, 0.5, 0.3]), 0.5)
    0.5

    Raises:
        ValueError: `share` is outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it must lie in (0, 1]")
    if values.numel() == 0:
        return math.inf
    # The epsilon keeps 0.07·100 = 7.000000000000001 from asking for an eighth token.
    count = max(1, math.ceil(share * values.numel() - 1e-9))
    return values.flatten().topk(count).values[-1].item()
