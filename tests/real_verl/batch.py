"""A micro-batch as verl hands it to a loss, the same loss by tropd's own objective, and both gradients."""

from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.distillation.losses import distillation_ppo_loss
from verl.utils import tensordict_utils as tu

from tropd.objective import (
    Head,
    TokenSignals,
    addressed_uniforms,
    student_terms,
    token_losses,
    trust_weight,
)
from tropd.objective.endings import events_of, one_action
from tropd.objective.loss import topk_term
from tropd.objective.regions import in_support
from tropd.verl.config import TropdLossConfig
from tropd.verl.losses import row_number

VOCABULARY, TOPK, READ = 40, 8, 6
PROMPTS, RESPONSES = (3, 2, 4), (5, 7, 2)
ENDINGS = (11, 23)
STOPS = torch.tensor([sum(PROMPTS[:n] + RESPONSES[:n]) for n in (1, 2, 3)])


class Batch:
    """Three sequences with random logits; the second token of the second response is a tool's, and not learned from.

    All rows of logits and of the teacher are about the token behind them.
    """

    def __init__(self, seed: int = 0, columns: int = TOPK + 1):
        torch.manual_seed(seed)
        total = sum(PROMPTS) + sum(RESPONSES)
        self.ids = torch.randint(0, VOCABULARY, (total,))
        self.ids[STOPS - 1] = torch.tensor([ENDINGS[0], ENDINGS[1], 5])
        self.logits = torch.randn(total, VOCABULARY, dtype=torch.float64) * 2
        self.old = self.logits + 0.1 * torch.randn_like(self.logits)
        self.teacher = 0.7 * self.logits + torch.randn_like(self.logits)
        self.teacher[:, list(ENDINGS)] += 6  # both among the teacher's top-k, wherever it is asked
        top = self.teacher.log_softmax(-1).topk(TOPK, -1)
        sampled = self.ids.roll(-1).unsqueeze(-1)
        score = self.teacher.log_softmax(-1).gather(-1, sampled)
        self.sent_ids = torch.cat([top.indices, sampled], -1)[:, :columns]
        self.sent_logp = torch.cat([top.values, score], -1)[:, :columns]
        self.mask = [torch.ones(length, dtype=torch.int64) for length in RESPONSES]
        self.mask[1][1] = 0

    def learned(self) -> Tensor:
        """The rows that predict a learned token."""
        spans = zip(STOPS.tolist(), RESPONSES, self.mask, strict=True)
        return torch.cat([torch.arange(stop - n - 1, stop - 1)[mask.bool()] for stop, n, mask in spans])

    def data(self, *, padded: bool = False, old: Tensor | None = None, temperature: float = 1.0) -> TensorDict:
        """verl's micro-batch: all nested (the trainer V1), or responses padded, as the older one has them."""
        starts = [stop - p - r for stop, p, r in zip(STOPS.tolist(), PROMPTS, RESPONSES, strict=True)]
        middles = [start + p for start, p in zip(starts, PROMPTS, strict=True)]
        old_logp = (self.old if old is None else old).log_softmax(-1)[:-1].gather(-1, self.ids[1:, None]).squeeze(-1)
        whole = [slice(start, stop) for start, stop in zip(starts, STOPS.tolist(), strict=True)]
        prompts = [self.ids[start:middle] for start, middle in zip(starts, middles, strict=True)]
        responses = [self.ids[middle:stop] for middle, stop in zip(middles, STOPS.tolist(), strict=True)]
        olds = [old_logp[middle - 1 : stop - 1] for middle, stop in zip(middles, STOPS.tolist(), strict=True)]
        columns = {
            "input_ids": jagged([self.ids[one] for one in whole]),
            "teacher_logprobs": jagged([self.sent_logp[one] for one in whole]),
            "teacher_ids": jagged([self.sent_ids[one].int() for one in whole]),
        }
        if padded:
            attention = torch.zeros(3, max(PROMPTS) + max(RESPONSES), dtype=torch.int64)
            for row, (p, r) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
                attention[row, max(PROMPTS) - p : max(PROMPTS) + r] = 1
            columns |= {
                "attention_mask": attention,
                "prompts": torch.zeros(3, max(PROMPTS), dtype=torch.int64),
                "responses": dense(responses),
                "response_mask": dense(self.mask),
                "old_log_probs": dense(olds),
            }
        else:
            columns |= {
                "prompts": jagged(prompts),
                "responses": jagged(responses),
                "response_mask": jagged(self.mask),
                "old_log_probs": jagged(olds),
            }
        data = TensorDict(columns, batch_size=[])
        count = int(sum(mask.sum() for mask in self.mask))
        tu.assign_non_tensor(data, dp_size=1, batch_num_tokens=count, global_batch_size=3, temperature=temperature)
        return data


def jagged(rows: list[Tensor]) -> Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def dense(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


class Actor(SimpleNamespace):
    """What the loss reads of verl's actor configuration."""

    def __init__(self, strategy: str = "fsdp"):
        super().__init__(strategy=strategy, loss_agg_mode="token-mean", global_batch_info={}, loss_scale_factor=None)


def settings(mode: str, **fields: Any) -> TropdLossConfig:
    return TropdLossConfig(loss_mode=mode, **{"topk": TOPK, **fields})


def loss_function(config: TropdLossConfig, strategy: str = "fsdp") -> Any:
    """verl's loss, bound as its worker binds it."""
    distillation = SimpleNamespace(distillation_loss=config, enabled=True)
    return partial(distillation_ppo_loss, config=Actor(strategy), distillation_config=distillation)


def by_verl(config: TropdLossConfig, batch: Batch, **of_data: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Loss, gradient in the logits, and metrics, through both of verl's stages."""
    data, function = batch.data(**of_data), loss_function(config)
    logits = batch.logits.clone().requires_grad_()
    numbers = function(student_logits=logits.unsqueeze(0), data=data)
    offsets = data["input_ids"].offsets()
    outputs = {name: torch.nested.nested_tensor_from_jagged(v.squeeze(0), offsets) for name, v in numbers.items()}
    loss, metrics = function(model_output=outputs, data=data)
    loss.backward()
    return loss.detach(), logits.grad, metrics


def by_tropd(config: TropdLossConfig, batch: Batch, old: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same from the whole distributions, by the path that tropd's tests hold its trainer to."""
    method, endings, rows = config.method, tuple(config.endings), batch.learned()
    logits = batch.logits.clone().requires_grad_()
    tokens = batch.ids.roll(-1)[rows]
    teacher = one_action(batch.teacher[rows].clone(), endings).log_softmax(-1)
    old_logps = one_action((batch.old if old is None else old)[rows].clone(), endings).log_softmax(-1)
    event = events_of(tokens, endings).unsqueeze(-1)
    teacher_logp, old_logp = (logps.gather(-1, event).squeeze(-1) for logps in (teacher, old_logps))
    selected = None
    if method.teacher_entropy_tau is not None:
        selected = -(teacher.exp() * teacher).sum(-1) <= method.teacher_entropy_tau
    top = teacher.topk(method.fkl_top_k or 1, -1)
    if method.gate == "support":
        selected = in_support(event.squeeze(-1), top.indices, top.values)
    ratio = (teacher_logp - old_logp).float()
    trust = trust_weight(method.gate, ratio, uniforms=draws(config, batch), tau=method.outlier_tau, selected=selected)
    trust, nothing = trust.double(), torch.zeros(len(rows), dtype=torch.float64)
    signals, direct = TokenSignals(old_logp, teacher_logp, trust, 1 - trust, nothing), None
    if method.needs_topk:
        direct = topk_term(method, signals, torch.arange(len(rows)), top.indices, top.values)
    head = Head(torch.eye(VOCABULARY, dtype=torch.float64), endings=endings)
    student, values, _ = student_terms(logits[rows], head, tokens, direct)
    losses = token_losses(method, signals, student, values)
    loss = (losses.trust + losses.outlier).sum() / len(rows)
    loss.backward()
    return loss.detach(), logits.grad


def draws(config: TropdLossConfig, batch: Batch) -> Tensor:
    """The gate's draws at the learned tokens: row after row, position after position."""
    starts = [0, *STOPS.tolist()]
    rows = [row_number(batch.ids[start:stop].tolist()) for start, stop in pairwise(starts)]
    found = addressed_uniforms(config.gate_seed, 0, rows, max(RESPONSES))
    return torch.cat([row[: len(mask)][mask.bool()] for row, mask in zip(found, batch.mask, strict=True)])
