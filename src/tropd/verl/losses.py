"""A method's loss in the two places where verl computes one.

verl calls a top-k loss twice. In the *logits processor* it hands over the student's logits, slice by slice where
sequences are split over ranks: there `direct_terms` makes one number per token of whatever needs the vocabulary. Behind
it `method_loss` makes each response token's loss of these numbers, the teacher's scores and π_old, by
`objective.token_losses`, as training with tropd's own trainer does.

Shapes: B responses of at most R tokens; L rows of logits, one for each token of prompts and responses on this rank;
N ≤ L of them predict a token that is learned from; K the teacher's top-k, V vocabulary, E the ids that end a response.
Row t of logits and of the teacher's scores is about token t + 1.
"""

import hashlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..objective.endings import events_of, one_action
from ..objective.loss import TokenSignals, token_losses, topk_term
from ..objective.methods import Method
from ..objective.randomness import addressed_uniforms
from ..objective.regions import in_support, trust_weight
from .sampled_score import is_ours, no_slot

DIRECT, STUDENT_LOGP, ENDING_SHIFT = "distillation_losses", "tropd_student_logp", "tropd_ending_shift"
STUDENT_MASS, TEACHER_MASS, SUPPORT = "student_mass", "teacher_mass", "tropd_support"

Outputs = dict[str, Tensor]


def register(verl_losses: ModuleType, names: Sequence[str]) -> None:
    """Make the methods `names` known to verl as top-k losses."""
    settings = verl_losses.DistillationLossSettings(names=list(names), use_topk=True)
    verl_losses.register_distillation_loss(settings)(method_loss)


# ---------------------------------------------------------------------- in the logits processor


def direct_terms_or(of_verl: Callable[..., Outputs]) -> Callable[..., Outputs]:
    """verl's `compute_topk_loss`, with `direct_terms` in its place for our losses."""

    def compute_topk_loss(
        config: Any, distillation_config: Any, data: Any, student_logits: Tensor, data_format: str
    ) -> Outputs:
        settings = distillation_config.distillation_loss
        if not is_ours(settings):
            return of_verl(config, distillation_config, data, student_logits, data_format)
        if config.strategy not in ("fsdp", "fsdp2"):
            raise ValueError(
                f"the actor's strategy is {config.strategy!r}; tropd's losses were written for fsdp and fsdp2. Set "
                "actor_rollout_ref.actor.strategy to one of them."
            )
        return direct_terms(settings, student_logits, data)

    return compute_topk_loss


def direct_terms(settings: Any, student_logits: Tensor, data: Any) -> Outputs:
    """What needs the student's whole distribution, per row of logits; each [1, L], and 0 where nothing is learned.

    `settings` is a `TropdLossConfig`, `student_logits` are [1, L, V] at temperature 1, and `data` is the micro-batch.

    Raises:
        ValueError: the rollouts' temperature is not 1, or the teacher's scores lack the sampled token.
    """
    _check_temperature(data)
    method, endings = settings.method, tuple(settings.endings)
    teacher_logp, teacher_ids = (data[name].values() for name in ("teacher_logprobs", "teacher_ids"))
    if teacher_ids.shape[-1] != settings.topk + 1:
        raise ValueError(no_slot(teacher_ids.shape[-1], settings.topk))
    learned = _learned_rows(data).to(teacher_ids.device)
    teacher_logp, teacher_ids, learned = (_of_this_rank(rows) for rows in (teacher_logp, teacher_ids, learned))
    rows = learned.nonzero().squeeze(-1)
    logits = student_logits.squeeze(0)[rows]  # a copy: verl's own log-probabilities overwrite its logits
    found = _of_rows(method, endings, logits, teacher_logp[rows], teacher_ids[rows].long(), settings.topk)
    empty = student_logits.new_zeros(student_logits.shape[1], dtype=found[DIRECT].dtype)
    return {name: empty.index_put((rows,), values).unsqueeze(0) for name, values in found.items()}


def _of_rows(
    method: Method, endings: tuple[int, ...], logits: Tensor, teacher_logp: Tensor, teacher_ids: Tensor, topk: int
) -> Outputs:
    """The numbers of N rows from their logits [N, V], and the teacher's [N, K + 1] ids and log-probabilities."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    sampled = teacher_ids[:, topk]
    shift = ending_shift(logits.detach(), sampled, endings)
    logps, sampled = one_action(logits, endings).log_softmax(-1), events_of(sampled, endings)
    student_logp = logps.gather(-1, sampled.unsqueeze(-1)).squeeze(-1)
    top_ids, top_logp = merge_topk(teacher_ids[:, :topk], teacher_logp[:, :topk].to(logps.dtype), endings)
    kept = top_logp.topk(min(method.fkl_top_k or topk, topk), dim=-1)
    everywhere = torch.arange(len(sampled), device=logits.device)
    ids = top_ids.gather(-1, kept.indices)
    inside = in_support(sampled, ids, kept.values).to(logps.dtype)
    if method.needs_topk:
        nothing = torch.zeros_like(inside)
        regions = TokenSignals(nothing, nothing, inside, 1.0 - inside, nothing)  # only gate `support` asks
        direct, mass = topk_term(method, regions, everywhere, ids, kept.values)(logps, slice(0, len(sampled)))
    else:
        mass = logps.detach().gather(-1, ids).exp().sum(-1)
        direct = torch.zeros_like(mass)
    return {
        DIRECT: direct,
        STUDENT_LOGP: student_logp,
        ENDING_SHIFT: shift,
        STUDENT_MASS: mass,
        TEACHER_MASS: kept.values.exp().sum(-1),
        SUPPORT: inside,
    }


def ending_shift(logits_NV: Tensor, sampled_N: Tensor, endings: Sequence[int]) -> Tensor:
    """log π(any ending) − log π(this one) where an ending was sampled, 0 elsewhere; [N].

    π_old of the sampled id comes from verl, which knows of no set of endings; this makes it that of the set, with the
    share that the id has of it now. Before the first update of a batch that is exact.
    """
    if len(endings) < 2:
        return torch.zeros_like(logits_NV[:, 0])
    is_ending = torch.isin(sampled_N, torch.tensor(endings, device=sampled_N.device))
    every = logits_NV[:, list(endings)].logsumexp(-1)
    return torch.where(is_ending, every - logits_NV.gather(-1, sampled_N.unsqueeze(-1)).squeeze(-1), 0.0)


def merge_topk(ids_NK: Tensor, logp_NK: Tensor, endings: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A top-k of π̄: the endings in it summed where the likeliest of them stands, as the first of the set.

    The places of the others keep an id of the set and log 0, so that they count as nothing.

    >>> ids, logp = merge_topk(torch.tensor([[7, 3, 2]]), torch.tensor([[0.5, 0.25, 0.125]]).log(), (2, 3))
    >>> ids.tolist(), logp.exp().tolist()
    ([[7, 2, 3]], [[0.5, 0.375, 0.0]])
    """
    if len(endings) < 2:
        return ids_NK, logp_NK
    inside = torch.isin(ids_NK, torch.tensor(endings, device=ids_NK.device))
    total = logp_NK.masked_fill(~inside, -torch.inf).logsumexp(-1, keepdim=True)
    first = inside & (inside.cumsum(-1) == 1)
    ids = torch.where(first, endings[0], torch.where(inside, endings[1], ids_NK))
    return ids, torch.where(first, total, logp_NK.masked_fill(inside, -torch.inf))


# ---------------------------------------------------------------------- behind it


def method_loss(config: Any, distillation_config: Any, model_output: Any, data: Any) -> tuple[Tensor, dict[str, Any]]:
    """Each response token's loss [B, R] under the method that `loss_mode` names, and what to log.

    Raises:
        ValueError: the configuration is not a `TropdLossConfig`, or the scores are not of the tokens of the responses.
    """
    settings = distillation_config.distillation_loss
    if not is_ours(settings):
        raise ValueError(
            f"loss_mode {settings.loss_mode!r} needs tropd's configuration. Set "
            "distillation.distillation_loss._target_=tropd.verl.config.TropdLossConfig."
        )
    if STUDENT_LOGP not in model_output:
        raise ValueError(
            "verl computed no logits, from which the loss is made. Set actor_rollout_ref.model.use_fused_kernels=false."
        )
    from verl.workers.utils.padding import no_padding_2_padding

    mask = _padded(data["response_mask"], 0).bool()
    tokens = _padded(data["responses"], 0)

    def of_tokens(values: Tensor) -> Tensor:
        return no_padding_2_padding(values, data)[mask]

    logp = of_tokens(model_output[STUDENT_LOGP])
    top_ids, top_logp = of_tokens(data["teacher_ids"]).long(), of_tokens(data["teacher_logprobs"]).to(logp.dtype)
    _check_tokens(top_ids[:, settings.topk], tokens[mask])
    rollout_logp = _padded(data["old_log_probs"], 0.0)[mask].to(logp.dtype) + of_tokens(model_output[ENDING_SHIFT])
    signals = divide(
        settings.method,
        rollout_logp.detach(),
        sampled_score(top_ids, top_logp, settings.topk, tuple(settings.endings)),
        top_logp[:, : settings.topk],
        of_tokens(model_output[SUPPORT]) > 0,
        uniforms(settings, tokens, mask, data) if settings.method.gate == "bernoulli" else None,
    )
    losses = token_losses(settings.method, signals, logp, of_tokens(model_output[DIRECT]))
    per_token = logp.new_zeros(mask.shape).masked_scatter(mask, losses.trust + losses.outlier)
    masses = {name: of_tokens(model_output[name]) for name in (STUDENT_MASS, TEACHER_MASS)}
    return per_token, _metrics(signals, masses, top_ids, settings.topk)


def sampled_score(ids: Tensor, logp: Tensor, topk: int, endings: tuple[int, ...]) -> Tensor:
    """log π_T of each sampled token, [N]; of an ending, that of all endings among the scores [N, K + 1].

    Those that the teacher did not send count as impossible.
    """
    own = logp[:, topk]
    if len(endings) < 2:
        return own
    ends = torch.isin(ids, torch.tensor(endings, device=ids.device))
    ends[:, topk] &= ~(ids[:, :topk] == ids[:, topk:]).any(-1)
    every = logp.masked_fill(~ends, -torch.inf).logsumexp(-1)
    return torch.where(torch.isin(ids[:, topk], torch.tensor(endings, device=ids.device)), every, own)


def divide(
    method: Method, rollout_logp: Tensor, teacher_logp: Tensor, top_logp: Tensor, inside: Tensor, draws: Tensor | None
) -> TokenSignals:
    """The tokens' regions; one without a finite score on either side is left out of both.

    `inside`, bool [N]: is the token among the top-k that the method reads?
    """
    log_ratio = (teacher_logp - rollout_logp).float()
    selected = inside if method.gate == "support" else None
    if method.teacher_entropy_tau is not None:
        selected = least_entropy(top_logp) <= method.teacher_entropy_tau
    trust = trust_weight(method.gate, log_ratio, uniforms=draws, tau=method.outlier_tau, selected=selected)
    scored, trust = log_ratio.isfinite(), trust.to(rollout_logp.dtype)
    return TokenSignals(
        rollout_logp=torch.where(scored, rollout_logp, 0.0),
        teacher_logp=torch.where(scored, teacher_logp, 0.0),
        trust_weight=torch.where(scored, trust, 0.0),
        outlier_weight=torch.where(scored, 1.0 - trust, 0.0),
        guidance_mask=torch.zeros_like(rollout_logp),
    )


def least_entropy(top_logp_NK: Tensor) -> Tensor:
    """The least entropy, in nats, of a distribution with this top-k; [N].

    Each token outside of the top-k has at most the probability of the last one inside.

    >>> least_entropy(torch.tensor([[0.5, 0.25]]).log())
    tensor([1.0397])
    """
    inside = -(top_logp_NK.exp() * top_logp_NK.clamp_min(torch.finfo(top_logp_NK.dtype).min)).sum(-1)
    tail = (1.0 - top_logp_NK.exp().sum(-1)).clamp_min(0.0)
    most = torch.minimum(top_logp_NK[:, -1].exp(), tail).clamp_min(torch.finfo(top_logp_NK.dtype).tiny)
    return inside - tail * most.log()


def uniforms(settings: Any, tokens: Tensor, mask: Tensor, data: Any) -> Tensor:
    """Draws of the `bernoulli` gate, [N]: each a function of the seed, the prompt and the response, and its position.

    So they depend neither on the micro-batch nor on the rank, and are the same in every epoch over a batch.
    """
    prompts, offsets = data["input_ids"].values().tolist(), data["input_ids"].offsets().tolist()
    rows = [row_number(prompts[start:stop]) for start, stop in pairwise(offsets)]
    return addressed_uniforms(settings.gate_seed, 0, rows, tokens.shape[1]).to(mask.device)[mask]


def row_number(token_ids: Sequence[int]) -> int:
    """63 bits of a sequence's hash."""
    text = ",".join(map(str, token_ids)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def _metrics(signals: TokenSignals, masses: Outputs, top_ids: Tensor, topk: int) -> dict[str, Any]:
    if not len(top_ids):
        return {}
    ratio = signals.log_ratio
    outside = ~(top_ids[:, :topk] == top_ids[:, topk:]).any(-1)
    values = {
        "trust_fraction": signals.trust_weight,
        "outlier_fraction": signals.outlier_weight,
        "log_ratio": ratio,
        "sampled_outside_topk": outside.to(ratio.dtype),
        **masses,
    }
    return {f"distillation/{name}": value.mean().item() for name, value in values.items()}


# ---------------------------------------------------------------------- verl's micro-batches


def _padded(values: Tensor, fill: float) -> Tensor:
    return values.to_padded_tensor(fill) if values.is_nested else values


def _learned_rows(data: Any) -> Tensor:
    """bool [all tokens]: the rows that predict a response token that is learned from."""
    mask = _padded(data["response_mask"], 0).bool()
    stops = data["input_ids"].offsets()[1:].tolist()
    learned = torch.zeros(stops[-1], dtype=torch.bool, device=mask.device)
    for row, length, stop in zip(mask, _response_lengths(data), stops, strict=True):
        learned[stop - length - 1 : stop - 1] = row[:length]
    return learned


def _response_lengths(data: Any) -> list[int]:
    if data["responses"].is_nested:
        return data["responses"].offsets().diff().tolist()
    return data["attention_mask"][:, data["prompts"].shape[1] :].sum(-1).tolist()


def _of_this_rank(rows: Tensor) -> Tensor:
    """The rows of this rank where sequences are split over several (Ulysses)."""
    from verl.utils.ulysses import get_ulysses_sequence_parallel_world_size, slice_input_tensor

    if get_ulysses_sequence_parallel_world_size() == 1:
        return rows
    return slice_input_tensor(rows.unsqueeze(0), dim=1).squeeze(0)


def _check_temperature(data: Any) -> None:
    temperature = data.get("temperature", 1.0)
    values = (
        temperature
        if isinstance(temperature, Tensor)
        else torch.tensor(float(getattr(temperature, "data", temperature)))
    )
    if not bool((values == 1).all()):
        raise ValueError(
            f"the student's temperature is {values.flatten()[0].item():g}, and verl's teacher scores at 1. Set "
            "actor_rollout_ref.rollout.temperature=1.0."
        )


def _check_tokens(scored: Tensor, tokens: Tensor) -> None:
    """The teacher's slot k must hold the very tokens of the responses."""
    wrong = int((scored != tokens).sum())
    if wrong:
        raise ValueError(
            f"{wrong} of {len(tokens)} response tokens have the teacher's score of a different token. The "
            "teacher's server runs without tropd, or uses a different tokenizer."
        )
