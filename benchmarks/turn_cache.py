"""Turns of an episode that read what is new alone, beside turns that read the whole episode again.

    OMP_NUM_THREADS=1 python benchmarks/turn_cache.py --model small

Rows of one prompt length write turns of one length, and are told replies of one length between them. Both ways draw the
same tokens. Tokens read are those that pass through the model; times are processor time of one thread, medians of runs
that take turns. A table goes to standard output, everything as JSON to --json.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.rollouts import MODELS, PAD
from tropd.rollout.engine.loop import SamplerNotes
from tropd.rollout.engine.noise import AddressedNoise, decoding_through
from tropd.rollout.engine.slots import KeptStates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--prompt", type=int, default=200, help="tokens of a prompt")
    parser.add_argument("--turn", type=int, default=24, help="tokens of a turn")
    parser.add_argument("--reply", type=int, default=48, help="tokens of a reply")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = MODELS[options.model]
    config = LlamaConfig(
        **sizes, intermediate_size=3 * sizes["hidden_size"], max_position_embeddings=4096, pad_token_id=PAD
    )
    model = LlamaForCausalLM(config).eval()
    prompts = torch.randint(3, sizes["vocab_size"], (options.rows, options.prompt)).tolist()
    play(model, prompts, options, None, turns=1)  # what is measured of a model once is no part of a turn
    runs: dict[str, list[dict[str, Any]]] = {"reads all": [], "reads what is new": []}
    for _ in range(options.repeats):
        runs["reads all"].append(play(model, prompts, options, None, options.turns))
        runs["reads what is new"].append(play(model, prompts, options, KeptStates(), options.turns))
    report(runs, options)


def play(
    model: Any, prompts: list[list[int]], options: argparse.Namespace, kept: KeptStates | None, turns: int
) -> dict[str, Any]:
    """Turns of all rows; tokens read, processor seconds, what was written and its log-probabilities."""
    texts, notes, read = [list(prompt) for prompt in prompts], SamplerNotes(temperature=1.0), 0

    def count(module: Any, args: Any, given: dict[str, Any]) -> None:
        nonlocal read
        read += given["input_ids"].numel()

    settings = GenerationConfig(max_new_tokens=options.turn, do_sample=True, top_k=0, pad_token_id=PAD)
    draws = torch.Generator().manual_seed(1)
    started = time.process_time()
    with model.register_forward_pre_hook(count, with_kwargs=True):
        for _ in range(turns):
            places = [(row, len(text) - options.prompt) for row, text in enumerate(texts)]
            noise = AddressedNoise(0, 0, 2, places, notes=notes, kept=kept)
            ids = torch.tensor(texts)
            with decoding_through(model, noise), torch.no_grad():
                output = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
                ).tolist()
            replies = torch.randint(3, model.config.vocab_size, (len(texts), options.reply), generator=draws).tolist()
            texts = [text + reply for text, reply in zip(output, replies, strict=True)]
    seconds = time.process_time() - started
    logps = [notes.of(row, text[: options.prompt], text[options.prompt :]) for row, text in enumerate(texts)]
    return {"read": read, "seconds": seconds, "texts": texts, "logps": [one.logps for one in logps if one]}


def report(runs: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    """Both ways side by side, and how far they differ."""
    (all_, new), first = runs.values(), [several[0] for several in runs.values()]
    gap = (torch.tensor(first[0]["logps"]) - torch.tensor(first[1]["logps"])).abs()
    found = {
        "settings": {name: str(value) for name, value in vars(options).items() if name != "json"},
        "tokens_read": {name: several[0]["read"] for name, several in runs.items()},
        "cpu_seconds": {name: [round(one["seconds"], 3) for one in several] for name, several in runs.items()},
        "same_tokens": first[0]["texts"] == first[1]["texts"],
        "largest_difference_of_a_log_probability": float(gap[~gap.isnan()].max()),
    }
    print(f"{'':20} {'tokens read':>12} {'CPU s':>8}")
    for name, several in (("reads all", all_), ("reads what is new", new)):
        seconds = statistics.median(one["seconds"] for one in several)
        print(f"{name:20} {several[0]['read']:12} {seconds:8.2f}")
    print(f"same tokens: {found['same_tokens']}; log-probabilities to {gap[~gap.isnan()].max():.1g}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
