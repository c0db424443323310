"""What training leaves between student and teacher: in which region, at which place, on which tokens.

    tropd compare recipes/proving_ground/remains.yaml --out runs/remains
    python benchmarks/remains.py --run runs/remains --json remains.json

First, without any training: what each method's gradient at the logits is, in expectation and as it is drawn, on
responses of the untrained student. Then every final model, on those same responses and on its own. Tables go to
standard output. About ten minutes on one CPU core.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import torch
from torch import Tensor

from tropd.comparison.layout import Layout
from tropd.comparison.measure import EVALUATION_SEED, Ruler
from tropd.comparison.prepare import make_ruler, read_setting, student_folder
from tropd.comparison.reading import read_plan
from tropd.comparison.sources import Text, load_model
from tropd.evaluation.exact import sample_responses, state_logps
from tropd.objective import jsd_sampled_advantage
from tropd.packing import pack_responses

EXCLUDED = 0.001
"""A token that the teacher gives less is one that it all but excludes."""
OUTLIER, FAR = -2.0, -5.0
"""Log ratios; the first is τ of the static floor."""
ROWS = 16


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


def gated(states: States, accept: Tensor) -> Gradient:
    """K1 with probability `accept` [N, V] of the drawn token, else forward KL of its state."""
    trusted, outlier = policy_gradient(states, states.log_ratio, accept), forward_kl(states)
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


GRADIENTS: Mapping[str, Callable[[States], Gradient]] = {
    "opd": lambda s: policy_gradient(s, s.log_ratio),
    "mask_outlier": lambda s: policy_gradient(s, s.log_ratio, s.log_ratio > OUTLIER),
    "reopold": lambda s: policy_gradient(s, s.log_ratio.clamp(min=OUTLIER)),
    "aopd": lambda s: gated(s, (s.log_ratio > 0).double()),
    "fkl_outlier": lambda s: gated(s, s.log_ratio.clamp(max=0).exp()),
    "jsd": hybrid_jsd,
    "fkl": forward_kl,
    "gkd": lambda s: direct(policy_gradient(s, s.log_ratio).mean),
}
"""Of methods without prefixes, which change the states and not the gradient at one: `reopold` is `tropd_clip` without
them, `fkl_outlier` is `tropd`. `gkd` is the mean of `opd`. Divergences are over the whole vocabulary; the teacher's top
64 of 191 entries, which the methods have, hold all but a trace."""


def pull(states: States, gradient: Gradient) -> float:
    """How fast the student's mass on excluded tokens falls along −gradient, for a drawn gradient of length 1."""
    p, excluded = states.student.exp(), states.excluded
    slope = excluded - p * excluded.sum(-1, keepdim=True)  # of the mass, by the logits
    return float((gradient.mean * slope).sum(-1).mean() / gradient.square.mean().sqrt())


def signal(gradient: Gradient) -> float:
    """The part of the drawn gradient's square that is its mean; 1 where nothing is drawn."""
    return float(gradient.mean.square().sum(-1).mean() / gradient.square.mean())


# What is left.


def remains(states: States, kinds: Mapping[str, Tensor]) -> dict[str, float]:
    """Of one model: distances in nats, masses in per cent, means over states."""
    p, r, excluded = states.student.exp(), states.log_ratio, states.excluded
    parts = -p * r  # of the reverse KL, by token
    found = {
        "reverse_kl": parts.sum(-1).mean(),
        "reverse_kl/far": (parts * (r < FAR)).sum(-1).mean(),
        "reverse_kl/outlier": (parts * ((r >= FAR) & (r < OUTLIER))).sum(-1).mean(),
        "reverse_kl/trusted": (parts * (r >= OUTLIER)).sum(-1).mean(),
        "total_variation": (p * (1 - r.clamp(max=0).exp())).sum(-1).mean(),
        "excluded": 100 * excluded.sum(-1).mean(),
    }
    for number, third in enumerate(("first", "middle", "last")):
        found[f"excluded/{third}"] = 100 * excluded[(3 * states.place).long() == number].sum(-1).mean()
    for kind, tokens in kinds.items():
        found[f"excluded/{kind}"] = 100 * excluded[:, tokens].sum(-1).mean()
    return {name: float(value) for name, value in found.items()}


def kinds_of(ruler: Ruler) -> dict[str, Tensor]:
    """Ids of numbers, of what ends a response, and of all else."""
    words = ruler.tokenizer.convert_ids_to_tokens(range(len(ruler.tokenizer)))
    number = torch.tensor([word.strip("Ġ▁ ").isdigit() for word in words])
    end = torch.zeros(len(words), dtype=torch.bool)
    end[ruler.eos_ids] = True
    return {"numbers": number & ~end, "end": end, "others": ~number & ~end}


@torch.no_grad()
def states_of(model, ruler: Ruler, texts: Sequence[Text], responses: Sequence[list[int]]) -> States:
    """At every position of `responses`."""
    teacher, columns = ruler.teachers[texts[0].part], []
    for start in range(0, len(texts), ROWS):
        prompts, rows = [text.prompt_ids for text in texts[start : start + ROWS]], responses[start : start + ROWS]
        packed = pack_responses(prompts, list(rows), [[True] * len(row) for row in rows], 0, model.device)
        place = torch.cat([torch.arange(len(row)) / len(row) for row in rows])
        columns.append((state_logps(model, packed).double(), state_logps(teacher, packed).double(), place))
    return States(*(torch.cat(column) for column in zip(*columns, strict=True)))


def samples_of(model, ruler: Ruler, texts: Sequence[Text]) -> list[list[int]]:
    prompts, pad = [text.prompt_ids for text in texts], ruler.tokenizer.pad_token_id
    length = ruler.plan.max_length
    return sample_responses(
        model, prompts, max_new_tokens=length, eos_ids=ruler.eos_ids, pad_id=pad, seed=EVALUATION_SEED
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="a comparison whose models were kept")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    layout = Layout(options.run)
    plan = read_plan(layout.read_state()["plan"])
    (name, setting), *_ = plan.settings.items()
    ruler, texts = make_ruler(plan, setting), read_setting(layout.setting(name))[0]["test"]
    untrained = load_model(student_folder(setting, layout.setting(name))).eval()
    shared = samples_of(untrained, ruler, texts)
    before = states_of(untrained, ruler, texts, shared)
    kinds = kinds_of(ruler)
    gradients = {label: of(before) for label, of in GRADIENTS.items()}
    found = {
        "states": len(before.place),
        "gradients": {label: {"pull": pull(before, g), "signal": signal(g)} for label, g in gradients.items()},
        "models": [{"label": "student", "seed": None, "shared": remains(before, kinds), "own": remains(before, kinds)}],
    }
    for cell, result in sorted(layout.results().items()):
        model = load_model(str(layout.cell(cell))).eval()
        own = states_of(model, ruler, texts, samples_of(model, ruler, texts))
        on_shared = remains(states_of(model, ruler, texts, shared), kinds)
        row = {"label": result["label"], "seed": result["seed"], "accuracy": 100 * result["scores"]["accuracy"]}
        found["models"].append(row | {"shared": on_shared, "own": remains(own, kinds)})
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    show(found, ["student", *plan.methods])


def show(found: Mapping, labels: Sequence[str]) -> None:
    print(f"Gradients at the logits of {found['states']:,} states of the untrained student\n")
    print("| method | pull on excluded tokens | signal (%) |\n|---|---|---|")
    for label, values in found["gradients"].items():
        print(f"| `{label}` | {values['pull']:.4f} | {100 * values['signal']:.2g} |")
    for states in ("shared", "own"):
        names = list(found["models"][0][states])
        print(f"\nWhat is left, {states} states\n\n| method | accuracy | {' | '.join(names)} |")
        print("|---" * (2 + len(names)) + "|")
        for label in labels:
            mine = [row for row in found["models"] if row["label"] == label]
            accuracy = mean_of([row["accuracy"] for row in mine if "accuracy" in row], 1)
            cells = [mean_of([row[states][name] for row in mine], 3 if "kl" in name else 2) for name in names]
            print(f"| `{label}` | {accuracy} | {' | '.join(cells)} |")


def mean_of(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    error = f" ± {stdev(values) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{error}"


if __name__ == "__main__":
    main()
