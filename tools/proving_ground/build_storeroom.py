"""Train the storeroom's models and measure them: `python -m tools.proving_ground.build_storeroom --out DIR`.

The teachers differ in what they have seen off their own path. The `unreliable-teacher` has seen nothing but right
episodes. In those of the `teacher` the expert makes a wrong step now and then, and mends it: the wrong step is not
learned, the way back is. The `robust-teacher` goes on from the teacher's weights and learns the expert's way back from
behind the student's own turns too (DAgger, arXiv 1011.0686). The student is the teacher's task, learned briefly. A
step's batch is a function of (name, seed, step). DIR gets a folder for each model, and `<name>.json` with figures.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tools.proving_ground.build import load, save_folder
from tools.proving_ground.expert import expert
from tools.proving_ground.learning import make_optimizers, update
from tropd.evaluation.episodes import Episode, play
from tropd.proving_ground.problems import split_of
from tropd.proving_ground.storeroom import Order, Storeroom, draw, is_right, model_path, orders

BATCH_SIZE = 32
BATCHES_IN_POOL = 8
"""Drawn together and sorted by length, so that little is padding."""
WARMUP_STEPS = 50
STEPS_BETWEEN_EVALUATIONS = 25
TEST_PROBLEMS = 150


@dataclass(frozen=True)
class Plan:
    """How a model is trained.

    Attributes:
        layers: of the model.
        width: of them.
        slip: how often the expert makes a wrong step, and mends it.
        steps: the length of the schedule.
        enough: training ends at the first evaluation that succeeds as often, greedily, on 100 validation problems.
        origin: the shipped model whose weights it starts from; random ones where there is none.
        behind_student: share of the episodes that begin behind turns of the shipped student.
        learning_rate: after the warm-up; a cosine takes it to 2% at the last step.
    """

    layers: int
    width: int
    slip: float
    steps: int
    enough: float = 1.0
    origin: str = ""
    behind_student: float = 0.0
    learning_rate: float = 3e-3


PLANS = {
    "teacher": Plan(layers=4, width=128, slip=0.25, steps=500),
    "unreliable-teacher": Plan(layers=4, width=128, slip=0.0, steps=500),
    "robust-teacher": Plan(4, 128, slip=0.25, steps=500, origin="teacher", behind_student=0.6, learning_rate=1.5e-3),
    "student": Plan(layers=3, width=96, slip=0.25, steps=300, enough=0.4),
}


Start = tuple[Order, list[dict[str, Any]]]
"""A problem, and messages behind which an episode goes on."""


class Resumed(Storeroom):
    """A storeroom in which some calls were made before."""

    def reset(self, need: int = 0, boxes: str = "{}", made: str = "[]", **row: Any) -> None:
        """Begin behind them."""
        super().reset(need, boxes)
        for call in json.loads(made):
            getattr(self, call["name"])(**call["arguments"])


def main() -> None:
    """Train what is not there yet, and measure it."""
    parser = argparse.ArgumentParser(description="Train the models of the storeroom.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, problems and orders (default: 0)")
    parser.add_argument("--only", choices=PLANS, help="one model")
    parser.add_argument("--measure", type=Path, help="measure the model of this folder instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_path("student"))
    if arguments.measure:
        print(json.dumps(measure(load(arguments.measure), tokenizer), indent=2))
        return
    for name in [arguments.only] if arguments.only else PLANS:
        torch.manual_seed(arguments.seed)
        origin = PLANS[name].origin
        model = load(model_path(origin)) if origin else Qwen3ForCausalLM(_config(PLANS[name], tokenizer))
        trained = train(name, model, tokenizer, arguments.seed)
        save_folder(model, tokenizer, arguments.out / name)
        record = {"plan": asdict(PLANS[name]), **trained, "test": measure(model, tokenizer)}
        (arguments.out / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
        print(json.dumps({name: record}, indent=2), flush=True)


def train(name: str, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> dict[str, Any]:
    """Next-token loss on the expert's own tokens; returns the steps, CPU seconds, and the last validation success."""
    plan, optimizers, started, reached = PLANS[name], make_optimizers(model), time.process_time(), 0.0
    batches, steps = _batches(plan, tokenizer, f"{name} {seed}"), 0
    problems = orders("validation", 100, seed=3)
    while steps < plan.steps and reached < plan.enough:
        model.train()
        warm = min((steps + 1) / WARMUP_STEPS, 0.02 + 0.49 * (1 + math.cos(math.pi * steps / plan.steps)))
        loss = update(model, optimizers, next(batches), warm * plan.learning_rate)
        steps += 1
        if steps % STEPS_BETWEEN_EVALUATIONS == 0:
            reached = success(played(model.eval(), tokenizer, [(order, []) for order in problems], 0.0))
            print(f"{name}: step {steps}, loss {loss:.3f}, success {reached:.2f}", flush=True)
    model.eval()
    return {"steps": steps, "cpu_seconds": round(time.process_time() - started), "validation_greedy": reached}


def measure(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Success on the test problems, greedy and at temperature 1, and when it goes on off its own path.

    `behind a slip`: the expert's first wrong step; `behind an error`: the first call of the student that the store has
    answered with an error; `behind half`: half of the student's turns, of an episode at temperature 1. All can be
    solved.
    """
    problems = orders("test", TEST_PROBLEMS, seed=9)
    starts: dict[str, list[Start]] = {"problems": [(order, []) for order in problems], "behind a slip": []}
    for order in problems:
        messages = expert(order, random.Random(order.key), slip=1.0)
        slips = [at + 2 for at, message in enumerate(messages) if "slip" in message]
        starts["behind a slip"] += [(order, messages[:end]) for end in slips[:1]]
    starts |= {"behind an error": [], "behind half": []}
    for found in student_starts(problems, tokenizer):
        wrong = [start for start in found if start[1][-1]["content"].split()[0] in ("error", "no")]
        starts["behind an error"] += wrong[:1]
        starts["behind half"] += found[len(found) // 2 :][:1]
    return {
        name: {
            "states": len(mine),
            "greedy": round(success(played(model, tokenizer, mine, 0.0)), 3),
            "temperature_1": round(success(played(model, tokenizer, mine, 1.0)), 3),
        }
        for name, mine in starts.items()
    }


def student_starts(problems: Sequence[Order], tokenizer: PreTrainedTokenizerFast) -> list[list[Start]]:
    """For each problem, the starts behind turns of one episode of the shipped student from which it can be solved."""
    student = load(model_path("student"))
    episodes = played(student, tokenizer, [(order, []) for order in problems], 1.0)
    return [
        [
            (order, episode.messages[:end])
            for end, message in enumerate(episode.messages, 1)
            if message["role"] == "tool" and can_be_solved(order, episode.messages[:end])
        ]
        for order, episode in zip(problems, episodes, strict=True)
    ]


def can_be_solved(order: Order, messages: Sequence[dict[str, Any]]) -> bool:
    """Could all calls be made, and have they brought no more than was asked for?"""
    store = Resumed()
    try:
        store.reset(**row_of(order, messages))
    except (AttributeError, TypeError, ValueError):
        return False
    return store.brought <= store.need


def row_of(order: Order, messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A row for `play`, behind the messages."""
    made = json.dumps([call["function"] for message in messages for call in message.get("tool_calls") or []])
    row = order.row()
    return row | {"prompt": [*row["prompt"], *messages], "made": made}


def played(model: Any, tokenizer: Any, starts: Sequence[Start], temperature: float) -> list[Episode]:
    """Episodes behind the starts, at most 20 turns of 18 tokens."""
    limits: dict[str, Any] = {"max_length": 340, "max_turns": 20, "turn_tokens": 18}
    rows = [row_of(order, messages) for order, messages in starts]
    with torch.no_grad():
        return play(
            model,
            tokenizer,
            rows,
            environment=Resumed,
            eos_ids=[tokenizer.eos_token_id],
            temperature=temperature,
            **limits,
        )


def success(episodes: Sequence[Episode]) -> float:
    """Share of the episodes whose store and last word are right."""
    return fmean(is_right(e.environment, e.messages[-1].get("content") or "") for e in episodes)


def _batches(plan: Plan, tokenizer: PreTrainedTokenizerFast, seed: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids and labels [rows, T], padded on the right; labels are −100 but on the expert's own right turns."""
    rng = random.Random(seed)
    off_path: list[Start] = []
    if plan.behind_student:
        off_path = [start for found in student_starts(list(_problems(rng, 2_000)), tokenizer) for start in found]
    while True:
        pool = []
        for order in _problems(rng, BATCH_SIZE * BATCHES_IN_POOL):
            start = rng.choice(off_path) if rng.random() < plan.behind_student else (order, [])
            pool.append(_example(start, tokenizer, rng, plan.slip))
        pool.sort(key=lambda example: len(example[0]))
        for first in rng.sample(range(0, len(pool), BATCH_SIZE), BATCHES_IN_POOL):
            rows = pool[first : first + BATCH_SIZE]
            ids, labels = (
                torch.nn.utils.rnn.pad_sequence([torch.tensor(row[side]) for row in rows], True, padding)
                for side, padding in ((0, tokenizer.pad_token_id), (1, -100))
            )
            yield ids, labels


def _problems(rng: random.Random, count: int) -> Iterator[Order]:
    """Of the training split, the same ones again and again if need be."""
    while count:
        order = draw(rng, rng.choice((1, 2, 3, 4)))
        if split_of(order) == "train":
            count -= 1
            yield order


def _example(
    start: Start, tokenizer: PreTrainedTokenizerFast, rng: random.Random, slip: float
) -> tuple[list[int], list[int]]:
    """Token ids and labels of an expert's episode, message by message; the word that opens a turn is not learned."""
    order, behind = start
    ids: list[int] = []
    labels: list[int] = []
    right = expert(order, rng, slip, behind)
    for at, message in enumerate([*order.row()["prompt"], *behind, *right]):
        own = tokenizer(tokenizer.apply_chat_template([message], tokenize=False))["input_ids"]
        learned = at > len(behind) and message["role"] == "assistant" and "slip" not in message
        ids += own
        labels += [-100, *own[1:]] if learned else [-100] * len(own)
    return ids, labels


def _config(plan: Plan, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    heads = plan.width // 16
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=plan.width,
        intermediate_size=3 * plan.width,
        num_hidden_layers=plan.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=16,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


if __name__ == "__main__":
    main()
