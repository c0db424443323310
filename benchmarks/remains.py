"""What training leaves between student and teacher: in which region, at which place, on which tokens.

    tropd compare recipes/proving_ground/remains.yaml --out runs/remains
    python benchmarks/remains.py --run runs/remains --json remains.json

The untrained student and every final model, on the untrained student's responses to the test problems and on its own.
Tables go to standard output. About ten minutes on one CPU core.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pull import States, states_of
from torch import Tensor

from tropd.comparison.cell.prepare import make_ruler, read_setting, student_folder
from tropd.comparison.cell.scores import EVALUATION_SEED, Ruler
from tropd.comparison.cell.texts import Text, load_model
from tropd.comparison.layout import Layout
from tropd.comparison.plan_file import read_plan
from tropd.evaluation.exact import sample_responses
from tropd.evaluation.statistics import estimate
from tropd.objective import trust_probability

OUTLIER, FAR = -2.0, -5.0
"""Log ratios; the first is τ of the static floor."""


def remains(states: States, kinds: Mapping[str, Tensor]) -> dict[str, float]:
    """Of one model: distances in nats, masses in per cent, means over states."""
    p, r, excluded = states.student.exp(), states.log_ratio, states.excluded
    parts = -p * r  # of the reverse KL, by token
    found = {
        "reverse_kl": parts.sum(-1).mean(),
        "reverse_kl/far": (parts * (r < FAR)).sum(-1).mean(),
        "reverse_kl/outlier": (parts * ((r >= FAR) & (r < OUTLIER))).sum(-1).mean(),
        "reverse_kl/trusted": (parts * (r >= OUTLIER)).sum(-1).mean(),
        "total_variation": (p * (1 - trust_probability(r))).sum(-1).mean(),
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
    number = torch.tensor([word.strip().isdigit() for word in words])
    end = torch.zeros(len(words), dtype=torch.bool)
    end[list(ruler.endings.ids)] = True
    return {"numbers": number & ~end, "end": end, "others": ~number & ~end}


def samples_of(model, ruler: Ruler, texts: Sequence[Text]) -> list[list[int]]:
    """As the comparison samples them."""
    return sample_responses(
        model,
        [text.prompt_ids for text in texts],
        max_new_tokens=ruler.plan.max_length,
        eos_ids=ruler.endings.ids,
        pad_id=ruler.tokenizer.pad_token_id,
        seed=EVALUATION_SEED,
    )


def read(run: Path) -> list[dict[str, Any]]:
    """What is left of the first setting's student, untrained and as each run ended."""
    layout = Layout(run)
    plan = read_plan(layout.read_state()["plan"])
    (name, setting), *_ = plan.settings.items()
    ruler, texts = make_ruler(plan, setting, layout.setting(name)), read_setting(layout.setting(name))[0]["test"]
    prompts, kinds = [text.prompt_ids for text in texts], kinds_of(ruler)
    teacher = ruler.teachers[setting.parts[0]]
    untrained = load_model(student_folder(setting, layout.setting(name))).eval()
    shared = samples_of(untrained, ruler, texts)

    def left(model) -> dict[str, dict[str, float]]:
        rows = {"shared": shared, "own": samples_of(model, ruler, texts)}
        return {states: remains(states_of(model, teacher, prompts, row), kinds) for states, row in rows.items()}

    found = [{"label": "student", "seed": None, **left(untrained)}]
    for cell, result in sorted(layout.results().items()):
        row = {"label": result["label"], "seed": result["seed"], "accuracy": 100 * result["scores"]["accuracy"]}
        found.append(row | left(load_model(str(layout.cell(cell))).eval()))
    return found


def show(found: Sequence[Mapping[str, Any]]) -> None:
    for states in ("shared", "own"):
        names = list(found[0][states])
        print(f"\nWhat is left, {states} states\n\n| method | accuracy | {' | '.join(names)} |")
        print("|---" * (2 + len(names)) + "|")
        for label in dict.fromkeys(row["label"] for row in found):
            mine = [row for row in found if row["label"] == label]
            accuracy = mean_of([row["accuracy"] for row in mine if "accuracy" in row], 1)
            cells = [mean_of([row[states][name] for row in mine], 3 if "kl" in name else 2) for name in names]
            print(f"| `{label}` | {accuracy} | {' | '.join(cells)} |")


def mean_of(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    found = estimate(values)
    return f"{found.mean:.{digits}f}" + (f" ± {found.standard_error:.{digits}f}" if found.n > 1 else "")


def main(
    description: str | None = __doc__,
    read: Callable[[Path], list[dict[str, Any]]] = read,
    show: Callable[[Sequence[Mapping[str, Any]]], None] = show,
) -> None:
    """Read the models of a comparison, and show what was measured of each."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="a comparison whose models were kept")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = read(options.run)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    show(found)


if __name__ == "__main__":
    main()
