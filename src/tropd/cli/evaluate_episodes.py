"""`tropd evaluate --environment`: a model's episodes with tools, and how many of them succeed."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.folder import check_model_folder, check_weights
from . import console, writers

if TYPE_CHECKING:
    from ..evaluation.responses import Sampling
    from ..models.files import ModelFiles
    from ..run.tools import RunTools

EPISODES, SETTINGS, SCORES = "episodes.jsonl", "episodes.json", "episode_scores.json"
DECIDES = ("data", "samples", "max_problems", "temperature", "max_new_tokens", "max_turns", "seed", "tools")
"""Options that say which episodes there are, beside the model and the environment."""

ROWS = (
    ("success", "success", 100, "% of episodes have the reward 1"),
    ("reward", "reward", 1, " on average"),
    ("turns", "turns", 1, " in an episode"),
    ("calls", "calls", 1, " in an episode"),
    ("failures", "failed calls", 1, " per episode: they raised an error, or named no tool"),
    ("cut", "cut", 100, "% of episodes end in an unanswered call"),
    ("tokens", "tokens", 1, " written by the model per episode"),
)


def evaluate_episodes(settings: dict[str, Any], sampling: "Sampling") -> int:
    """Play what is missing, write it and its scores, and print them.

    Args:
        settings: options of `tropd evaluate`.
        sampling: what they say of drawing.
    """
    from ..data import load_prompts
    from ..evaluation.episode_scores import scores_of
    from ..models.files import read_model_files
    from ..run.tools import check_rows_of_tools
    from .generate import found_tools
    from .quiet import quiet_libraries

    quiet_libraries()
    check_model_folder(settings["model"], "model")
    _check(settings)
    words = {name: settings[name].split(",") if settings[name] else [] for name in ("tools", "environment")}
    tools = found_tools(argparse.Namespace(**words))
    data = load_prompts(settings["data"], chat=True, limit=settings["max_problems"] or None)
    check_rows_of_tools(tools, data)
    files = read_model_files(settings["model"], trust_remote_code=settings["trust_remote_code"])
    check_weights(settings["model"], "model", settings["trust_remote_code"])
    folder = Path(settings["out"])
    records = _begin(folder, settings)
    rows = [row for row in data.dataset for _ in range(settings["samples"] or 1)]
    if len(records) < len(rows):
        writer: Any = writers.begin(files, "model", settings, 0)
        console.say(writers.described(settings["model"], writer))
        with console.progress("episodes", len(rows), "episodes", len(records)) as advance:
            _play(writer.model, files, tools, rows, (folder, settings, sampling), records, advance)
    scores = scores_of(records)
    _write(folder / SCORES, scores)
    _print(scores, folder)
    return 0


def _check(settings: dict[str, Any]) -> None:
    for name in ("samples", "max_problems"):
        if settings[name] < 0:
            raise ValueError(f"{name} is {settings[name]}; give a number, or remove it.")
    if settings["max_turns"] < 1:
        raise ValueError(f"max_turns is {settings['max_turns']}; an episode has at least 1.")
    from .evaluate import DEFAULTS

    for name in ("top_p", "top_k", "min_p", "system_prompt"):
        if settings[name] != DEFAULTS[name][0]:
            raise ValueError(f"{name} is {settings[name]}, but episodes do not support it. Remove it.")
    if settings["engine"] != "hf":
        raise ValueError(
            f"engine is {settings['engine']!r}, but with tools only Transformers can write episodes. Remove engine."
        )
    if settings["benchmarks"]:
        raise ValueError("benchmarks and environment (or tools) are both set; evaluate one, then the other.")


def _begin(folder: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The episodes that are there already, of the same evaluation.

    Raises:
        ValueError: they are of another.
    """
    from ..atomic_files import read_jsonl

    described = {name: settings[name] for name in ("model", "environment", *DECIDES)}
    path = folder / SETTINGS
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name in described if before.get(name) != described[name]]
        if other:
            raise ValueError(
                f"{other[0]} is {described[other[0]]!r}, but the episodes in {folder} are of {before.get(other[0])!r}. "
                "Choose another --out."
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, described)
    return read_jsonl(folder / EPISODES) if (folder / EPISODES).is_file() else []


def _play(
    model: Any,
    files: "ModelFiles",
    tools: "RunTools",
    rows: list[dict[str, Any]],
    how: tuple[Path, dict[str, Any], "Sampling"],
    records: list[dict[str, Any]],
    advance: Any,
) -> None:
    """Add the missing episodes, a batch at a time, to the file and to `records`."""
    from ..atomic_files import append_jsonl
    from ..evaluation.episode_scores import record_of
    from ..evaluation.episodes import play

    folder, settings, sampling = how
    while len(records) < len(rows):
        first = len(records)
        played = play(
            model,
            files.tokenizer,
            rows[first : first + sampling.batch_size],
            environment=tools.environments,
            functions=tools.functions,
            eos_ids=files.eos_ids,
            max_length=sampling.max_new_tokens,
            max_turns=settings["max_turns"],
            temperature=sampling.temperature,
            seed=sampling.seed,
            first_row=first,
            template=sampling.chat_template_kwargs,
        )
        added = [
            {"row": (first + n) // (settings["samples"] or 1)} | record_of(episode) for n, episode in enumerate(played)
        ]
        append_jsonl(folder / EPISODES, added)
        records += added
        advance(len(added))


def _write(path: Path, value: Any) -> None:
    from ..atomic_files import write_whole

    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _print(scores: dict[str, Any], folder: Path) -> None:
    lines = [f"episodes      {scores['episodes']} of {scores['problems']} problems"]
    for name, words, factor, unit in ROWS:
        if name in scores:
            mean, error = scores[name]["mean"], scores[name]["standard_error"]
            spread = "" if error is None else f" ± {factor * error:.2f}"
            lines.append(f"{words:<14}{factor * mean:.2f}{spread}{unit}")
    for line in [*lines, f"written       {folder / EPISODES}, {SCORES}"]:
        console.out().print(line, markup=False)
