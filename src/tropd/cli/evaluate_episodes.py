"""`tropd evaluate --environment`: a model's episodes with tools, and how many of them succeed."""

import argparse
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.folder import check_model_folder, check_weights
from . import console, writers

if TYPE_CHECKING:
    from ..engines.batch_file import BatchFile
    from ..evaluation.responses import Sampling
    from ..models.files import ModelFiles
    from ..run.tools import RunTools

EPISODES, SETTINGS, SCORES = "episodes.jsonl", "episodes.json", "episode_scores.json"
PLAYED = ("environment", "tools", "max_turns", "max_tool_result_tokens")
"""Options that decide episodes, beside those that decide any response."""

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
    """Play what is missing, write it and its scores, and print them."""
    from ..atomic_files import read_jsonl, write_whole
    from ..data import load_prompts
    from ..engines.batch_file import BatchFile
    from ..evaluation.episode_scores import scores_of
    from ..evaluation.responses import describe
    from ..evaluation.results import versions
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
    folder, samples = Path(settings["out"]), settings["samples"] or 1
    rows = [row for row in data.dataset for _ in range(samples)]
    sampling = replace(sampling, top_p=1.0)  # which benchmarks' responses are cut by, and episodes not
    digests = _digests(Path(settings["data"]))
    described = describe(sampling, list(data.dataset), samples, digests) | {name: settings[name] for name in PLAYED}
    file = BatchFile(folder / EPISODES, folder / SETTINGS, described, len(rows), sampling.batch_size)
    if file.done < file.total:
        writer: Any = writers.begin(files, "model", settings, 0)
        console.say(writers.described(settings["model"], writer))
        with console.progress("episodes", file.total, "episodes", file.done) as advance:
            _play(writer.model, files, tools, rows, settings, sampling, file, advance)
    scores = scores_of(read_jsonl(file.path)) | {"versions": versions()}
    write_whole(folder / SCORES, json.dumps(scores, indent=2, ensure_ascii=False) + "\n")
    _print(scores, folder)
    return 0


def _digests(data: Path) -> dict[str, str]:
    """Of a file of prompts; what has none, such as a generated task, is told by its rows."""
    return {data.name: hashlib.sha256(data.read_bytes()).hexdigest()} if data.is_file() else {}


def _check(settings: dict[str, Any]) -> None:
    for name in ("samples", "max_problems"):
        if settings[name] < 0:
            raise ValueError(f"{name} is {settings[name]}; give a number, or remove it.")
    if settings["max_turns"] < 1:
        raise ValueError(f"max_turns is {settings['max_turns']}; an episode has at least 1.")
    most = settings["max_tool_result_tokens"]
    if most is not None and most < 1:
        raise ValueError(f"max_tool_result_tokens is {most}; use at least 1, or leave it out to cut no reply.")
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


def _play(
    model: Any,
    files: "ModelFiles",
    tools: "RunTools",
    rows: list[dict[str, Any]],
    settings: dict[str, Any],
    sampling: "Sampling",
    file: "BatchFile",
    advance: Any,
) -> None:
    from ..evaluation.episode_scores import record_of
    from ..evaluation.episodes import play

    samples = settings["samples"] or 1
    for lines in file.missing_batches():
        played = play(
            model,
            files.tokenizer,
            [rows[line] for line in lines],
            environment=tools.environments,
            functions=tools.functions,
            eos_ids=files.eos_ids,
            max_length=sampling.max_new_tokens,
            max_turns=settings["max_turns"],
            reply_tokens=settings["max_tool_result_tokens"],
            temperature=sampling.temperature,
            seed=sampling.seed,
            first_row=lines.start,
            template=sampling.chat_template_kwargs,
        )
        file.append(
            [{"row": line // samples} | record_of(episode) for line, episode in zip(lines, played, strict=True)]
        )
        advance(len(lines))


def _print(scores: dict[str, Any], folder: Path) -> None:
    lines = [f"episodes      {scores['episodes']} of {scores['problems']} problems"]
    for name, words, factor, unit in ROWS:
        if name in scores:
            mean, error = scores[name]["mean"], scores[name]["standard_error"]
            spread = "" if error is None else f" ± {factor * error:.2f}"
            lines.append(f"{words:<14}{factor * mean:.2f}{spread}{unit}")
    console.show(*lines, f"written       {folder / EPISODES}, {SCORES}")
