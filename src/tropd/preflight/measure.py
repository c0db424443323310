"""From a probe to the numbers that decide: distance of the models, size of the outliers, how well each reads.

N counts the probed student tokens that have a finite teacher score; r = log π_T(x) − log π_old(x) of such a token.
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ..objective.regions import trust_probability
from .episode_measurement import measure_episodes
from .measurement import USED, Endings, EndingUse, GradientForecast, PairMeasurement, PositionBucket
from .probe import Probe

OUTLIER_TAU = -2.0
"""r below this is called an outlier here: the τ of `mask_outlier` and `reopold`."""
DEEP_OUTLIER = -5.0
"""r below this: the teacher gives the token less than 1/148 of the student's probability."""
FIRST_BUCKET = 16
"""Response positions are counted in buckets 0–15, 16–63, 64–255, …: each four times as far as the last."""
WANTED_MASS = 0.99


def measure(probe: Probe) -> PairMeasurement:
    """Every number of the pair, from what the probe saw."""
    finite = (probe.tokens.teacher_logp - probe.tokens.student_logp).isfinite()
    tokens = {name: column[finite] for name, column in vars(probe.tokens).items()}
    floats = {name: column.double() for name, column in tokens.items()}
    rollout, log_ratio = tokens["rollout"], floats["teacher_logp"] - floats["student_logp"]
    trust = trust_probability(log_ratio)
    outliers = log_ratio[log_ratio < OUTLIER_TAU]
    return PairMeasurement(
        num_tokens=log_ratio.numel(),
        nonfinite_tokens=int((~finite).sum()),
        trust_fraction=_mean(trust),
        trust_standard_error=standard_error(trust, rollout),
        positions=_by_position(tokens["position"], trust, log_ratio),
        k1=_mean(-log_ratio),
        k1_standard_error=standard_error(-log_ratio, rollout),
        mean_abs_gap=_mean((floats["teacher_logp"] - floats["trainer_logp"]).abs()),
        student_nll=_mean(-floats["student_logp"]),
        teacher_nll=_mean(-floats["teacher_logp"]),
        student_entropy=_mean(floats["student_entropy"]),
        teacher_entropy=_mean(floats["teacher_entropy"][floats["teacher_entropy"].isfinite()]),
        chance_nll=math.log(probe.vocab_size),
        outlier_share=_mean((log_ratio < OUTLIER_TAU).double()),
        deep_outlier_share=_mean((log_ratio < DEEP_OUTLIER).double()),
        log_ratio_median=_quantile(log_ratio, 0.5),
        log_ratio_min=_quantile(log_ratio, 0.0),
        outlier_p50=_quantile(outliers, 0.5),
        outlier_p01=_quantile(outliers, 0.01),
        gradient=forecast_gradient(log_ratio, floats["student_logp"].exp(), floats["student_collision"]),
        teacher_topk_mass=_mean(floats["teacher_topk_mass"]),
        student_topk_mass=_mean(floats["student_topk_mass"]),
        **_shared_and_prompts(probe),
        **_lengths(probe),
        endings=measure_endings(probe),
        episodes=measure_episodes(probe.rollouts, rollout, tokens["position"], (trust, log_ratio), probe.call_opener),
    )


def measure_endings(probe: Probe) -> Endings:
    """By which ids each model ends, and how often the student's last token is an outlier.

    An id outside E counts as used where one model gives it at least `USED` where the *other* one ends: what a model
    gives to a special token elsewhere, such as one that opens a thought, ends nothing.
    """
    seen, endings = probe.endings, probe.endings.pair
    means: dict[tuple[str, str], Tensor | None] = {}
    for model, place in product(("student", "teacher"), repeat=2):
        places_P = getattr(seen, f"{place}_ends")
        means[model, place] = getattr(seen, model)[places_P].double().mean(0) if places_P.any() else None
    models = {"student": endings.student} | {name or "teacher": own for name, own in endings.teachers.items()}
    uses = []
    for column, token_id in enumerate(seen.ids):
        given = {key: None if mean is None else mean[column].item() for key, mean in means.items()}
        elsewhere = max(given["teacher", "student"] or 0.0, given["student", "teacher"] or 0.0)
        if token_id in endings.ids or elsewhere >= USED:
            uses.append(
                EndingUse(
                    token_id,
                    tuple(name for name, own in models.items() if token_id in own.ids),
                    given["student", "student"],
                    given["teacher", "student"],
                    given["student", "teacher"],
                    given["teacher", "teacher"],
                )
            )
    return Endings(
        merged=endings.merged,
        known=endings.ids,
        differ=endings.differ,
        uses=tuple(uses),
        num_ended=int(seen.student_ends.sum()),
        num_at_teachers=int(seen.teacher_ends.sum()),
        last_outlier_share=_last_outlier_share(probe),
    )


def _last_outlier_share(probe: Probe) -> float | None:
    tokens = probe.tokens
    lengths = torch.tensor([len(rollout.response) if rollout.ended else 0 for rollout in probe.rollouts])
    log_ratio = tokens.teacher_logp - tokens.student_logp
    last = (tokens.position == lengths[tokens.rollout] - 1) & log_ratio.isfinite()
    return _mean((log_ratio[last] < OUTLIER_TAU).double())


def forecast_gradient(log_ratio: Tensor, student_prob: Tensor, student_collision: Tensor) -> GradientForecast | None:
    """Share of outliers in OPD's squared gradient, and how much longer it is than that of `mask_outlier`.

    K1's loss of a token is −r log π_S(x) with r detached, so its gradient in the logits is −r (e_x − π_S) and

        ‖∇‖² = r² ‖e_x − π_S‖² = r² (1 − 2 π_S(x) + Σ_v π_S(v)²).

    The forecast adds these squares over tokens: it takes the gradients of different tokens for orthogonal, and the way
    from logits to weights for equally long everywhere. With G² the sum over all tokens and T² over those with r > −2,
    which are all that `mask_outlier` keeps, the ratio is G/T and the outliers' share is 1 − T²/G². Both methods divide
    by the same number of tokens. Outliers' gradients in fact line up with each other, so the measured ratio is usually
    the larger one: see docs/preflight.md.

    All [N]: r, π_S(x) of the sampled tokens, and Σ_v π_S(v)².
    """
    squares = log_ratio.square() * (1 - 2 * student_prob + student_collision).clamp_min(0)
    total, trusted = squares.sum().item(), squares[log_ratio > OUTLIER_TAU].sum().item()
    if total == 0:
        return None
    return GradientForecast(1 - trusted / total, math.sqrt(total / trusted) if trusted > 0 else math.inf)


def standard_error(values: Tensor, rollout: Tensor) -> float | None:
    """Of the mean over tokens, with rollouts as the independent units (tokens of one rollout are not).

    √(J/(J−1) · Σ_j e_j²)/N with e_j the sum of a rollout's deviations from the mean and J rollouts.
    """
    clusters = rollout.unique(return_inverse=True)[1]
    count = int(clusters.max()) + 1 if clusters.numel() else 0
    if count < 2:
        return None
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, clusters, values - values.mean())
    return math.sqrt(count / (count - 1) * sums.square().sum().item()) / values.numel()


def _by_position(position: Tensor, trust: Tensor, log_ratio: Tensor) -> tuple[PositionBucket, ...]:
    buckets, start, stop = [], 0, FIRST_BUCKET
    while start <= int(position.max()) if position.numel() else False:
        inside = (position >= start) & (position < stop)
        if inside.any():
            means = trust[inside].mean().item(), -log_ratio[inside].mean().item()
            buckets.append(PositionBucket(start, stop, int(inside.sum()), *means))
        start, stop = stop, stop * 4
    return tuple(buckets)


def _shared_and_prompts(probe: Probe) -> dict[str, Any]:
    reaches = (probe.topk_mass_curve >= WANTED_MASS).nonzero()
    return {
        "top_k": probe.top_k,
        "k_for_99": int(reaches[0]) + 1 if len(reaches) else None,
        "vocab_size": probe.vocab_size,
        "num_prompts": probe.prompts.num_prompts,
        "prompt_tokens": probe.prompts.student_logp.numel(),
        "student_prompt_nll": _mean(-probe.prompts.student_logp.double()),
        "teacher_prompt_nll": _mean(-probe.prompts.teacher_logp.double()),
    }


def _lengths(probe: Probe) -> dict[str, Any]:
    rollouts = probe.rollouts
    lengths = [rollout.student_length for rollout in rollouts]
    ended = [rollout.student_length for rollout in rollouts if rollout.ended]
    return {
        "num_rollouts": len(rollouts),
        "mean_length": sum(lengths) / len(lengths),
        "max_length": max(lengths),
        "ended_length": sum(ended) / len(ended) if ended else None,
        "truncated_share": _share([not rollout.ended for rollout in rollouts]),
        "repetitive_share": _share([rollout.repetitive for rollout in rollouts]),
        "collapsed_share": _share([rollout.collapsed for rollout in rollouts]),
        "excluded_share": _share([not rollout.included for rollout in rollouts]),
    }


def _mean(values: Tensor) -> float | None:
    return values.mean().item() if values.numel() else None


def _quantile(values: Tensor, share: float) -> float | None:
    # Picked from the sorted values, as the metrics' quantiles are.
    return values.sort().values[round(share * (values.numel() - 1))].item() if values.numel() else None


def _share(marks: Sequence[bool]) -> float:
    return sum(marks) / len(marks)
