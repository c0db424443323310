"""Turns of an episode that read what is new alone, beside turns that read the whole episode again.

    OMP_NUM_THREADS=1 python benchmarks/turn_cache.py --model small
    OMP_NUM_THREADS=1 python benchmarks/turn_cache.py --storeroom 64

The first is a training step's rollouts: rows of one prompt length write turns of one length, and are told replies of
one length between them. The second is `tropd evaluate --environment`: the storeroom's student plays its test problems,
greedy and at temperature 1. Both ways draw the same tokens. Tokens read are those that pass through the model; times
are processor time of one thread, medians of runs that take turns. A table goes to standard output, everything as JSON
to --json.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.rollouts import MODELS, PAD
from tropd.evaluation import episodes
from tropd.proving_ground.storeroom import Storeroom, model_path, orders
from tropd.rollout.engine.loop import SamplerNotes
from tropd.rollout.engine.noise import AddressedNoise, decoding_through
from tropd.rollout.engine.slots import KeptStates

Written = tuple[list[list[int]], list[list[float]]]
"""What every row came to, and the log-probabilities of its tokens where they were noted."""
Play = Callable[[KeptStates | None], dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--prompt", type=int, default=200, help="tokens of a prompt")
    parser.add_argument("--turn", type=int, default=24, help="tokens of a turn")
    parser.add_argument("--reply", type=int, default=48, help="tokens of a reply")
    parser.add_argument("--storeroom", type=int, metavar="N", help="play N test problems of the storeroom instead")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: dict[str, Any] = {"settings": {name: str(value) for name, value in vars(options).items() if name != "json"}}
    for name, play in (storeroom if options.storeroom else rollouts)(options).items():
        play(None)  # what is measured of a model once is no part of a turn
        runs: dict[str, list[dict[str, Any]]] = {"reads all": [], "reads what is new": []}
        for _ in range(options.repeats):
            runs["reads all"].append(play(None))
            runs["reads what is new"].append(play(KeptStates()))
        found[name] = report(name, runs)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def rollouts(options: argparse.Namespace) -> dict[str, Play]:
    """Turns of one length, by a random Llama."""
    sizes = MODELS[options.model]
    config = LlamaConfig(
        **sizes, intermediate_size=3 * sizes["hidden_size"], max_position_embeddings=4096, pad_token_id=PAD
    )
    model = LlamaForCausalLM(config).eval()
    prompts = torch.randint(3, sizes["vocab_size"], (options.rows, options.prompt)).tolist()
    return {"rollouts": lambda kept: watched(model, lambda: write_turns(model, prompts, options, kept))}


def storeroom(options: argparse.Namespace) -> dict[str, Play]:
    """Episodes of the storeroom's student, all of one temperature together."""
    name = str(model_path("student"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
    rows = [order.row() for order in orders("test", options.storeroom, seed=9)]
    settings = {"environment": Storeroom, "eos_ids": [tokenizer.eos_token_id], "max_length": 400, "turn_tokens": 18}

    def play(kept: KeptStates | None, temperature: float) -> Written:
        episodes.KeptStates = lambda: kept  # type: ignore[assignment,misc]
        played = episodes.play(model, tokenizer, rows, temperature=temperature, **settings)  # type: ignore[arg-type]
        return [[*episode.prompt_ids, *episode.response] for episode in played], []

    return {
        name: lambda kept, temperature=temperature: watched(model, lambda: play(kept, temperature))  # type: ignore[misc]
        for name, temperature in (("greedy episodes", 0.0), ("episodes at temperature 1", 1.0))
    }


def watched(model: Any, run: Callable[[], Written]) -> dict[str, Any]:
    """Tokens read, processor seconds, what was written and its log-probabilities."""
    read = 0

    def count(module: Any, args: Any, given: dict[str, Any]) -> None:
        nonlocal read
        read += given["input_ids"].numel()

    started = time.process_time()
    with model.register_forward_pre_hook(count, with_kwargs=True):
        texts, logps = run()
    return {"read": read, "seconds": time.process_time() - started, "texts": texts, "logps": logps}


def write_turns(model: Any, prompts: list[list[int]], options: argparse.Namespace, kept: KeptStates | None) -> Written:
    """Turns of all rows, with replies between them; what was written, and its log-probabilities."""
    texts, notes = [list(prompt) for prompt in prompts], SamplerNotes(temperature=1.0)
    settings = GenerationConfig(max_new_tokens=options.turn, do_sample=True, top_k=0, pad_token_id=PAD)
    draws = torch.Generator().manual_seed(1)
    for _ in range(options.turns):
        places = [(row, len(text) - options.prompt) for row, text in enumerate(texts)]
        noise = AddressedNoise(0, 0, 2, places, notes=notes, kept=kept)
        ids = torch.tensor(texts)
        with decoding_through(model, noise), torch.no_grad():
            output = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
            ).tolist()
        replies = torch.randint(3, model.config.vocab_size, (len(texts), options.reply), generator=draws).tolist()
        texts = [text + reply for text, reply in zip(output, replies, strict=True)]
    found = [notes.of(row, text[: options.prompt], text[options.prompt :]) for row, text in enumerate(texts)]
    return texts, [one.logps for one in found if one]


def report(name: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Print both ways side by side, and how far they differ."""
    first = [several[0] for several in runs.values()]
    found = {
        "tokens_read": {name: several[0]["read"] for name, several in runs.items()},
        "cpu_seconds": {name: [round(one["seconds"], 3) for one in several] for name, several in runs.items()},
        "same_tokens": first[0]["texts"] == first[1]["texts"],
    }
    print(f"{name:26} {'tokens read':>12} {'CPU s':>8}")
    for way, several in runs.items():
        seconds = statistics.median(one["seconds"] for one in several)
        print(f"{way:26} {several[0]['read']:12} {seconds:8.2f}")
    print(f"same tokens: {found['same_tokens']}")
    if first[0]["logps"]:
        gap = (torch.tensor(first[0]["logps"]) - torch.tensor(first[1]["logps"])).abs()
        found["largest_difference_of_a_log_probability"] = largest = float(gap[~gap.isnan()].max())
        print(f"log-probabilities to {largest:.1g}")
    return found


if __name__ == "__main__":
    main()
