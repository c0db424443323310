"""How hard each method pulls, at the start, on tokens that the teacher all but excludes; nothing is trained.

    python benchmarks/pull.py --json pull.json

Every pair of the proving ground, on responses of its untrained student to 200 training problems of a domain: each
method's gradient at the logits, in expectation and as it is drawn. Tables go to standard output. Three minutes on one
CPU core.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from tropd.comparison.cell.texts import eos_ids_of, load_model
from tropd.evaluation.exact import sample_responses, state_logps
from tropd.models.packing import pack_responses
from tropd.objective import get_method, jsd_sampled_advantage, sampled_advantage, trust_probability
from tropd.proving_ground.domains import DOMAINS, records
from tropd.proving_ground.family import GENERALIST, PRUNED, SPECIALISTS, STUDENT, model_path

EXCLUDED = 0.001
"""A token that the teacher gives less is one that it all but excludes."""
OUTLIER = -2.0
"""τ of the static floor, a log ratio."""
PROBLEMS, LONGEST, ROWS, SEED = 200, 224, 16, 0


@dataclass(frozen=True)
class States:
    """Both models' log-probabilities at the states of some responses.

    Attributes:
        student: [N, V].
        teacher: [N, V].
        place: [N] in [0, 1), how far into the response.
    """

    student: Tensor
    teacher: Tensor
    place: Tensor

    @property
    def log_ratio(self) -> Tensor:
        return self.teacher - self.student

    @property
    def excluded(self) -> Tensor:
        """[N, V] what the student gives to each token that the teacher all but excludes, 0 elsewhere."""
        return self.student.exp() * (self.teacher.exp() < EXCLUDED)


# Gradients at the logits. K1 draws y from π_S and gives −A(y)·(e_y − π_S); a divergence draws nothing but the state.


@dataclass(frozen=True)
class Gradient:
    """A method's gradient at the logits of each state.

    Attributes:
        mean: [N, V], over the drawn token and the gate.
        square: [N], the expected square of the drawn gradient's length.
    """

    mean: Tensor
    square: Tensor


def policy_gradient(states: States, advantage: Tensor, weight: Tensor | float = 1.0) -> Gradient:
    """Of K1 with `advantage` of each token, [N, V], where a token is learned from with probability `weight`.

    >>> p = torch.tensor([[0.5, 0.25, 0.25]]).log()
    >>> found = policy_gradient(States(p, p, torch.zeros(1)), torch.tensor([[1.0, 0.0, 0.0]]))
    >>> found.mean, found.square
    (tensor([[-0.2500,  0.1250,  0.1250]]), tensor([0.1875]))
    """
    p = states.student.exp()
    pushed = p * weight * advantage
    lengths = 1 - 2 * p + p.square().sum(-1, keepdim=True)  # of e_y − π_S, squared
    return Gradient(p * pushed.sum(-1, keepdim=True) - pushed, (pushed * advantage * lengths).sum(-1))


def gated(states: States, accept: Tensor, outlier: Gradient | None = None) -> Gradient:
    """K1 with probability `accept` [N, V] of the drawn token, else `outlier` of its state, by default forward KL."""
    trusted, outlier = policy_gradient(states, states.log_ratio, accept), outlier or forward_kl(states)
    rejected = (states.student.exp() * (1 - accept)).sum(-1)
    return Gradient(
        trusted.mean + rejected[:, None] * outlier.mean,
        trusted.square + rejected * outlier.square,
    )


def direct(gradient: Tensor) -> Gradient:
    return Gradient(gradient, gradient.square().sum(-1))


def forward_kl(states: States) -> Gradient:
    return direct(states.student.exp() - states.teacher.exp())


def hybrid_jsd(states: States, beta: float = 0.5) -> Gradient:
    """The teacher's half is direct, the student's half is sampled."""
    sampled = policy_gradient(states, jsd_sampled_advantage(states.student, states.teacher, beta))
    p, q = states.student.exp(), states.teacher.exp()
    share = q * p / (beta * q + (1 - beta) * p)
    half = beta * (1 - beta) * (p * share.sum(-1, keepdim=True) - share)
    return Gradient(sampled.mean + half, sampled.square + 2 * (sampled.mean * half).sum(-1) + half.square().sum(-1))


def scalar(states: States, accept: Tensor, k: int) -> Gradient:
    """K1 with probability `accept` of the drawn token, else with minus the state's forward KL on the teacher's top-k,
    renormalised there, as its advantage."""
    top = states.teacher.topk(min(k, states.teacher.shape[-1]), -1)
    teacher = top.values - top.values.logsumexp(-1, keepdim=True)
    value = (teacher.exp() * (teacher - states.student.gather(-1, top.indices))).sum(-1, keepdim=True)
    parts = policy_gradient(states, states.log_ratio, accept), policy_gradient(states, -value, 1 - accept)
    return Gradient(parts[0].mean + parts[1].mean, parts[0].square + parts[1].square)


def support(states: States, k: int, floor: float = -math.inf, *, union: bool = False, samples: bool = True) -> Gradient:
    """ResOPD on the teacher's top-k; the log ratios of its tail, the bucket's and the drawn token's, from `floor` up.

    A token outside of the top-k adds −r (e_y − π_S) − b to what every token gives; see docs/equations.md.

    Args:
        states: of both models.
        k: of the top-k.
        floor: τ.
        union: the student's top-k is in the support, too.
        samples: without, a token outside adds nothing.
    """
    p, q = states.student.exp(), states.teacher.exp()
    outside = torch.ones_like(p)
    for logps in (states.teacher, states.student) if union else (states.teacher,):
        outside.scatter_(-1, logps.topk(min(k, p.shape[-1]), -1).indices, 0.0)
    tail = (p * outside).sum(-1, keepdim=True).clamp_min(1e-300)
    bucket = (tail / (q * outside).sum(-1, keepdim=True).clamp_min(1e-300)).log().clamp(max=-floor)
    weight = p * torch.where(outside > 0, bucket, -states.log_ratio)  # Σ weight ∇log p: exact, but for the bucket
    every = weight - p * weight.sum(-1, keepdim=True)
    if not samples:
        return direct(every)
    b = bucket * p * (outside / tail - 1)
    drawn, ratio = p * outside, states.log_ratio.clamp(min=floor)
    pushed = drawn * ratio
    residual = p * pushed.sum(-1, keepdim=True) - pushed - tail * b
    lengths = 1 - 2 * p + p.square().sum(-1, keepdim=True)
    square = pushed * ratio * lengths + 2 * pushed * (b - (b * p).sum(-1, keepdim=True))
    square = square.sum(-1) + (tail * b.square()).sum(-1)
    return Gradient(every + residual, every.square().sum(-1) + 2 * (every * residual).sum(-1) + square)


def with_advantage(name: str) -> Callable[[States], Gradient]:
    """Of a method that is K1 with an advantage of its own on every token."""
    method = get_method(name)
    return lambda s: policy_gradient(
        s, sampled_advantage(method.advantage, s.student, s.teacher, method.advantage_alpha)
    )


GRADIENTS: Mapping[str, Callable[[States], Gradient]] = {
    "opd": lambda s: policy_gradient(s, s.log_ratio),
    "mask_outlier": lambda s: policy_gradient(s, s.log_ratio, s.log_ratio > OUTLIER),
    "reopold": lambda s: policy_gradient(s, s.log_ratio.clamp(min=OUTLIER)),
    "aopd": lambda s: gated(s, (s.log_ratio > 0).double()),
    "tropd_mask": lambda s: policy_gradient(s, s.log_ratio, trust_probability(s.log_ratio)),
    "fkl_outlier": lambda s: gated(s, trust_probability(s.log_ratio)),
    "jsd": hybrid_jsd,
    "fkl": forward_kl,
    "gkd": lambda s: direct(policy_gradient(s, s.log_ratio).mean),
    "vopd": lambda s: policy_gradient(s, s.log_ratio - (s.student.exp() * s.log_ratio).sum(-1, keepdim=True)),
    "mixture_opd": with_advantage("mixture_opd"),
    "tv_opd": with_advantage("tv_opd"),
    "power_opd": with_advantage("power_opd"),
    "tropd_released": lambda s: scalar(s, trust_probability(s.log_ratio), 64),
    "resopd": lambda s: support(s, get_method("resopd").fkl_top_k),
    "resopd, k = 16": lambda s: support(s, 16),
    "tropd_support": lambda s: support(s, get_method("tropd_support").fkl_top_k, OUTLIER),
    "tropd_support, union": lambda s: support(s, 8, OUTLIER, union=True),
    "tropd_support, gate inside": lambda s: gated(
        s, trust_probability(s.log_ratio), support(s, 16, OUTLIER, samples=False)
    ),
}
"""Without prefixes, which change the states and not the gradient at one: `reopold` is `tropd_clip` without them,
`fkl_outlier` is `tropd`. `gkd` is the mean of `opd`. Forward KLs that are differentiated are over the whole vocabulary;
the teacher's top 64 of 191 entries, which the methods have, hold all but a trace. The last two are variants of
`recipe:proving_ground/support_ablations`: both models' top-8, and K1 where the gate accepts with reverse KL on the
teacher's top-16 where it rejects."""


def pull(states: States, gradient: Gradient) -> float:
    """How fast the student's mass on excluded tokens falls along −gradient, for a drawn gradient of length 1."""
    p, excluded = states.student.exp(), states.excluded
    slope = excluded - p * excluded.sum(-1, keepdim=True)  # of the mass, by the logits
    return float((gradient.mean * slope).sum(-1).mean() / gradient.square.mean().sqrt())


def signal(gradient: Gradient) -> float:
    """The part of the drawn gradient's square that is its mean; 1 where nothing is drawn."""
    return float(gradient.mean.square().sum(-1).mean() / gradient.square.mean())


def numbers(states: States, gradient: Gradient) -> dict[str, float]:
    """`length` is the root of the mean square of a drawn gradient; `pull` is for one of length 1."""
    length = float(gradient.square.mean().sqrt())
    return {"length": length, "signal": signal(gradient), "pull": pull(states, gradient)}


@torch.no_grad()
def states_of(student, teacher, prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> States:
    """At every position of `responses`."""
    columns = []
    for start in range(0, len(prompts), ROWS):
        rows = responses[start : start + ROWS]
        packed = pack_responses(
            list(prompts[start : start + ROWS]), list(rows), [[True] * len(row) for row in rows], 0, student.device
        )
        place = torch.cat([torch.arange(len(row)) / len(row) for row in rows])
        columns.append((state_logps(student, packed).double(), state_logps(teacher, packed).double(), place))
    return States(*(torch.cat(column) for column in zip(*columns, strict=True)))


def start_of(student: str, teacher: str, domain: str) -> States:
    """Of a shipped pair, on the student's own responses."""
    tokenizer = AutoTokenizer.from_pretrained(model_path(student))
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in records(domain, "train", PROBLEMS, seed=2)]
    models = [load_model(model_path(name)).eval() for name in (student, teacher)]
    responses = sample_responses(
        models[0],
        prompts,
        max_new_tokens=LONGEST,
        eos_ids=eos_ids_of(model_path(teacher)),
        pad_id=tokenizer.pad_token_id,
        seed=SEED,
    )
    return states_of(*models, prompts, responses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pairs = {
        f"{student} from {teachers.get(domain, GENERALIST)}, {domain}": (
            student,
            teachers.get(domain, GENERALIST),
            domain,
        )
        for student, teachers in ((STUDENT, {}), (STUDENT, SPECIALISTS), (PRUNED, {}))
        for domain in DOMAINS
    }
    found = {}
    for name, pair in pairs.items():
        states = start_of(*pair)
        gradients = {label: of(states) for label, of in GRADIENTS.items()}
        found[name] = {label: numbers(states, gradient) for label, gradient in gradients.items()}
        print(f"\n{name}: {len(states.place):,} states\n")
        print("| method | length | signal (%) | pull on excluded tokens |\n|---|---|---|---|")
        for label, values in found[name].items():
            print(f"| `{label}` | {values['length']:.2f} | {100 * values['signal']:.0f} | {values['pull']:.4f} |")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
