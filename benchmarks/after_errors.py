"""What a student does after an error of its own: how spread it is, how far from its teacher, and how often it succeeds.

    tropd compare recipe:proving_ground/after_errors --out runs/after-errors --only opd --only mask_outlier \\
      --only fkl_outlier --only gkd
    python benchmarks/after_errors.py --run runs/after-errors --json after-errors.json

Episodes of the untrained student and of every final model at temperature 1, on the test problems. A state is after an
error when some tool's reply before it in the episode tells of one. Entropy, total variation and reverse KL are exact,
means over states in nats per token. About four minutes on one CPU core.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from remains import main, mean_of

from tropd.comparison.cell.episode_ruler import play_all, succeeds, turn_numbers
from tropd.comparison.cell.prepare import make_ruler, read_setting, student_folder
from tropd.comparison.cell.scores import EVALUATION_SEED, Ruler
from tropd.comparison.cell.texts import Text, load_model
from tropd.comparison.layout import Layout
from tropd.comparison.plan_file import read_plan
from tropd.evaluation.episodes import Episode
from tropd.evaluation.exact import state_divergences


def turns_after_an_error(messages: Sequence[Mapping[str, Any]]) -> list[bool]:
    """For each turn of the model's: did some reply before it tell of an error?

    >>> said = [{"role": role, "content": text} for role, text in [("assistant", ""), ("tool", "error only 8")]]
    >>> turns_after_an_error([*said, {"role": "assistant", "content": ""}])
    [False, True]
    """
    told = accumulate((m["role"] == "tool" and "error" in str(m["content"]) for m in messages), lambda a, b: a or b)
    return [error for message, error in zip(messages, told, strict=True) if message["role"] == "assistant"]


def measured(model: Any, teacher: Any, ruler: Ruler, texts: Sequence[Text]) -> dict[str, float]:
    """Of one model: shares in per cent, distances in nats per token."""
    stops, rows = list(ruler.endings.ids), [{"prompt": text.prompt, **text.columns} for text in texts]
    episodes: list[Episode] = play_all(model, ruler.tokenizer, rows, ruler.plan, stops, 1.0, EVALUATION_SEED)
    values = state_divergences(
        model,
        teacher,
        [text.prompt_ids for text in texts],
        [episode.response for episode in episodes],
        pad_id=ruler.tokenizer.pad_token_id,
        endings=ruler.endings.as_one,
        external=[episode.external for episode in episodes],
    )
    turns = [turns_after_an_error(episode.messages) for episode in episodes]
    after = torch.tensor(
        [
            mine[min(turn, len(mine)) - 1]
            for mine, episode in zip(turns, episodes, strict=True)
            for turn in turn_numbers(episode.external)
        ]
    )
    erred = [any(mine) for mine in turns]
    right = [succeeds(episode, stops) for episode in episodes]
    found = {"episodes with an error": 100 * sum(erred) / len(erred)}
    for name, wanted in (("without", False), ("with", True)):
        mine = [won for won, error in zip(right, erred, strict=True) if error is wanted]
        found[f"success {name} an error"] = 100 * sum(mine) / max(len(mine), 1)
    for place, states in (("before", ~after), ("after", after)):
        reverse, _, variation, entropy = values[states].mean(0).tolist()
        found |= {f"entropy {place}": entropy, f"TV {place}": variation, f"reverse KL {place}": reverse}
    return found


def read(run: Path) -> list[dict[str, Any]]:
    """The untrained student and each run's final model."""
    layout = Layout(run)
    plan = read_plan(layout.read_state()["plan"])
    (name, setting), *_ = plan.settings.items()
    ruler, texts = make_ruler(plan, setting, layout.setting(name)), read_setting(layout.setting(name))[0]["test"]
    teacher = next(iter(ruler.teachers.values()))
    untrained = load_model(student_folder(setting, layout.setting(name))).eval()
    found = [{"label": "student", "seed": None, **measured(untrained, teacher, ruler, texts)}]
    for cell, result in sorted(layout.results().items()):
        model = load_model(str(layout.cell(cell))).eval()
        found.append({"label": result["label"], "seed": result["seed"], **measured(model, teacher, ruler, texts)})
    return found


def show(found: Sequence[Mapping[str, Any]]) -> None:
    names = [name for name in found[0] if name not in ("label", "seed")]
    print(f"| method | {' | '.join(names)} |\n{'|---' * (1 + len(names))}|")
    for label in dict.fromkeys(row["label"] for row in found):
        mine = [row for row in found if row["label"] == label]
        cells = [mean_of([row[name] for row in mine], 1 if "error" in name else 3) for name in names]
        print(f"| `{label}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(__doc__, read, show)
