"""A made-up batch of tokens for the tests of losses and reductions."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tropd import objective
from tropd.objective import Head, Method, TokenLosses, TokenSignals

VOCABULARY, WIDTH = 9, 4


@dataclass(frozen=True)
class Batch:
    """Tokens with a random student and a random teacher; `guidance` says which belong to a prefix."""

    hidden: Tensor
    head: Head
    teacher_logps: Tensor
    tokens: Tensor
    uniforms: Tensor
    guidance: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, chosen: Tensor | slice) -> "Batch":
        parts = (self.hidden, self.teacher_logps, self.tokens, self.uniforms, self.guidance)
        hidden, *others = (part[chosen] for part in parts)
        return Batch(hidden.detach().requires_grad_(True), self.head, *others)

    def float(self) -> "Batch":
        """The same batch in float32."""
        head = Head(self.head.weight.detach().float().requires_grad_(True))
        hidden = self.hidden.detach().float().requires_grad_(True)
        return Batch(hidden, head, self.teacher_logps.float(), self.tokens, self.uniforms, self.guidance.float())

    def signals(self, method: Method, selected: Tensor | None = None) -> TokenSignals:
        with torch.no_grad():
            rollout, _ = objective.sampled_logps(self.hidden, self.head, self.tokens)
        teacher = objective.gather_logps(self.teacher_logps, self.tokens)
        if method.gate == "support":
            top = objective.topk_of(self.teacher_logps, min(method.fkl_top_k, VOCABULARY), VOCABULARY)
            selected = objective.in_support(self.tokens, *top)
        trust = objective.trust_weight(
            method.gate, teacher - rollout, uniforms=self.uniforms, tau=method.outlier_tau, selected=selected
        )
        student = 1 - self.guidance
        return TokenSignals(rollout, teacher, trust * student, (1 - trust) * student, self.guidance)

    def losses(self, method: Method, signals: TokenSignals) -> TokenLosses:
        direct = None
        if method.needs_topk:
            needed = signals.outlier_weight + (
                signals.trust_weight if method.trust != "k1" or method.baseline != "none" else 0
            )
            index = (needed > 0).nonzero().squeeze(-1)
            ids, logp = objective.topk_of(self.teacher_logps[index], min(method.fkl_top_k, VOCABULARY), VOCABULARY)
            direct = objective.topk_term(method, signals, index, ids, logp)
        logp, values, _ = objective.student_terms(self.hidden, self.head, self.tokens, direct, slice_tokens=5)
        return objective.token_losses(method, signals, logp, values)

    def loss(self, method: Method, selected: Tensor | None = None, reduction: str = "shared") -> Tensor:
        signals = self.signals(method, selected)
        counts = objective.RegionCounts(*objective.region_counts(signals).tolist())
        return objective.reduce_losses(self.losses(method, signals), counts, reduction)


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    def make(num: int, num_guidance: int = 0, seed: int = 0) -> Batch:
        random = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random, dtype=torch.float64)

        weight = normal(VOCABULARY, WIDTH).requires_grad_(True)
        return Batch(
            hidden=normal(num, WIDTH).requires_grad_(True),
            head=Head(weight),
            teacher_logps=(1.5 * normal(num, VOCABULARY)).log_softmax(-1),
            tokens=torch.randint(VOCABULARY, (num,), generator=random),
            uniforms=torch.rand(num, generator=random, dtype=torch.float64),
            guidance=(torch.arange(num) < num_guidance).double(),
        )

    return make
