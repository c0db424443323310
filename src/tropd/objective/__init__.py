"""The mathematics of on-policy distillation: tensors and floats in, per-token tensors out.

Nothing here reads a configuration, a file, a clock or a global random generator. The equations are those of
*Trust Region On-Policy Distillation* (arXiv 2606.01249) and its neighbours; each function names its own.
Names load when first touched, so that listing the methods needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "divergences": (
        "forward_kl generalized_jsd jsd_sampled_advantage k1 k2 k3 reverse_kl skew_forward_kl skew_reverse_kl "
        "support_reverse_kl topk_forward_kl topk_jsd_teacher_part"
    ),
    "head.fused_loss": "FusedLoss fused_loss",
    "head.layer": (
        "Head entropy_of gather_logps logps_of over_vocabulary sampled_logps scan_vocabulary topk_logps topk_of"
    ),
    "loss": (
        "DirectTerm FullVocabularyTerm SeveralTerms TokenLosses TokenSignals TopKTerm active_tokens full_function "
        "full_term student_terms token_losses topk_function topk_term"
    ),
    "methods": "METHODS SETTINGS Method describe get_method register_method",
    "policy_gradient": "AdvantageScale policy_gradient_loss sampled_advantage",
    "randomness": "addressed_uniforms",
    "reduce": "RegionCounts denominators reduce_losses reduced_parts region_counts",
    "regions": "in_support top_share_threshold trust_probability trust_weight union_of_supports",
    "schedules": "guidance_fraction prefix_length",
    "turns": "takeover_probability turn_mean_weights turn_trust_weights",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = sorted(_HOME_OF)  # noqa: PLE0605

if TYPE_CHECKING:
    from .divergences import *  # noqa: F403
    from .head.fused_loss import *  # noqa: F403
    from .head.layer import *  # noqa: F403
    from .loss import *  # noqa: F403
    from .methods import *  # noqa: F403
    from .policy_gradient import *  # noqa: F403
    from .randomness import *  # noqa: F403
    from .reduce import *  # noqa: F403
    from .regions import *  # noqa: F403
    from .schedules import *  # noqa: F403
    from .turns import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
