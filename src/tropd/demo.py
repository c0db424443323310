"""`python -m tropd.demo`: distil the shipped teacher into the shipped student, and show what happened.

The job is a real one in small: a 0.9M-parameter teacher that adds three numbers with worked columns, a 0.4M-parameter
student that mostly fails, the trainer of this package, and an exact measurement before and after.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cli.quiet import quiet_libraries

ROLLOUTS_PER_STEP = 64
COLOURS = {"trust": "\033[32m", "outlier": "\033[1;31m", "guidance": "\033[34m", "left out": "\033[90m"}
MARKS = {"trust": "{}", "outlier": "[{}]", "guidance": "<{}>", "left out": "({})"}
RESET = "\033[0m"


@dataclass(frozen=True)
class Score:
    """How a model does on held-out problems.

    Attributes:
        accuracy: share of greedy answers whose every step is right.
        reverse_kl: exact KL(student‖teacher) on the model's own samples, nats per token.
        forward_kl: exact KL(teacher‖student) on the same states.
        total_variation: on the same states.
    """

    accuracy: float
    reverse_kl: float
    forward_kl: float
    total_variation: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = _parser().parse_args(arguments)
    quiet_libraries()
    _use_two_threads()
    started = time.monotonic()
    print(_intro(options), flush=True)
    scores = {name: (evaluate(_load(name), options.problems), 0) for name in ("teacher", "student")}
    for method in options.methods:
        print(f"\n{method}: {_steps(method, options.steps)} steps of {ROLLOUTS_PER_STEP} rollouts", flush=True)
        trainer = train(method, options)
        scores[f"student + {method}"] = (evaluate(trainer.model.eval(), options.problems), _tokens_written(trainer))
    print(_table(scores))
    print(_rollout(Path(options.out) / options.methods[-1], colour=sys.stdout.isatty()))
    print(f"\nEverything is in {options.out}/<method>: run.json, metrics.jsonl, rollouts/, and the trained model,")
    print(f"a Hugging Face folder. Took {(time.monotonic() - started) / 60:.1f} minutes (seed {options.seed}).")
    return 0


def _use_two_threads() -> None:
    """More threads than that slow models of this size down."""
    import torch

    torch.set_num_threads(min(2, torch.get_num_threads()))


def _steps(method: str, steps: int) -> int:
    """Steps of a run: twice as many with teacher prefixes, which leave about half of each rollout to the student."""
    from .objective.methods import METHODS

    return 2 * steps if METHODS[method].guided else steps


def train(method: str, options: argparse.Namespace) -> Any:
    """Train a fresh student by `method`; the trainer, with the model in it."""
    from datasets import Dataset
    from transformers import AutoTokenizer, PrinterCallback

    from . import TrOPDConfig, TrOPDTrainer
    from .cli.progress import TrainingProgress
    from .proving_ground import pair

    progress = TrainingProgress(f"  {method}")

    args = TrOPDConfig(
        output_dir=str(Path(options.out) / method),
        method=method,
        seed=options.seed,
        learning_rate=options.learning_rate,
        max_steps=_steps(method, options.steps),
        per_device_train_batch_size=ROLLOUTS_PER_STEP,
        num_generations=4,
        max_completion_length=72,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        rollout_log_steps=10,
    )
    trainer = TrOPDTrainer(
        str(pair.student_path()),
        str(pair.teacher_path()),
        args=args,
        train_dataset=Dataset.from_list(
            [{"prompt": row["prompt"]} for row in pair.prompts("train", 512, options.seed)]
        ),
        processing_class=AutoTokenizer.from_pretrained(str(pair.student_path())),
        callbacks=[progress],
    )
    trainer.remove_callback(PrinterCallback)  # the progress shows the same numbers
    try:
        trainer.train()
    finally:
        progress.close()
    return trainer


def evaluate(model: Any, num_problems: int) -> Score:
    """Greedy accuracy and exact distance to the teacher on the test split."""
    from transformers import AutoTokenizer

    from .evaluation.exact import exact_divergence, sample_responses
    from .proving_ground import pair
    from .proving_ground.arithmetic import grade

    tokenizer = AutoTokenizer.from_pretrained(str(pair.student_path()))
    rows = pair.prompts("test", num_problems, 0)
    ids = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    greedy = _greedy(model, tokenizer, ids)
    right = sum(grade(row["prompt"], text).correct for row, text in zip(rows, greedy, strict=True))
    ends = {"eos_ids": [tokenizer.eos_token_id], "pad_id": tokenizer.pad_token_id}
    sampled = sample_responses(model, ids, max_new_tokens=pair.MAX_NEW_TOKENS, seed=1, **ends)
    distance = exact_divergence(model, _load("teacher"), ids, sampled, rows_per_pass=64)
    return Score(right / len(rows), distance.reverse_kl, distance.forward_kl, distance.total_variation)


def _greedy(model: Any, tokenizer: Any, ids: list[list[int]]) -> list[str]:
    from .proving_ground import pair

    batch = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
    output = model.generate(
        **batch, do_sample=False, max_new_tokens=pair.MAX_NEW_TOKENS, pad_token_id=tokenizer.pad_token_id
    )
    return tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def _load(name: str) -> Any:
    from transformers import AutoModelForCausalLM

    from .proving_ground import pair

    path = pair.teacher_path() if name == "teacher" else pair.student_path()
    return AutoModelForCausalLM.from_pretrained(str(path)).eval()


def _tokens_written(trainer: Any) -> int:
    """Tokens that the student wrote itself during training."""
    lengths = [entry["response/length"] for entry in trainer.state.log_history if "response/length" in entry]
    return round(sum(lengths) * ROLLOUTS_PER_STEP)


def _table(scores: dict[str, tuple[Score, int]]) -> str:
    head = f"{'held-out problems':<20}{'all steps right':>16}{'reverse KL':>12}{'forward KL':>12}{'TV':>8}"
    head += f"{'tokens written':>16}"
    lines = ["", head, "-" * len(head)]
    for name, (score, tokens) in scores.items():
        lines.append(
            f"{name:<20}{score.accuracy:>16.1%}{score.reverse_kl:>12.3f}{score.forward_kl:>12.3f}"
            f"{score.total_variation:>8.3f}{tokens:>16,}"
        )
    lines += [
        "KL and total variation (TV) are exact, per token, on each model's own samples.",
        "This pair is close (TV 0.05), so plain OPD is safe here; docs/results.md has a pair that is far apart.",
        "While prefixes are long, TrOPD has few student tokens to learn from: trust fraction near 1, tiny gradient. It",
        "takes twice as many steps, so that all methods write about as many tokens.",
    ]
    return "\n".join(lines)


def _rollout(directory: Path, colour: bool) -> str:
    """The latest logged rollout that shows the most regions, its tokens marked."""
    files = sorted((directory / "rollouts").glob("step-*.jsonl"))
    records = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    if not records:
        return ""
    record = max(records, key=lambda found: (len({token["region"] for token in found["tokens"]}), found["step"]))
    shown = "".join(_shown(token, colour) for token in record["tokens"])
    legend = ", ".join(_shown({"text": name, "region": name}, colour) for name in ("trust", "outlier", "guidance"))
    return f"\nA rollout of step {record['step']} ({legend}):\n  {record['prompt']}{shown}"


def _shown(token: dict[str, Any], colour: bool) -> str:
    if colour:
        return f"{COLOURS[token['region']]}{token['text']}{RESET}"
    return MARKS[token["region"]].format(token["text"])


def _intro(options: argparse.Namespace) -> str:
    return (
        "Trust-region on-policy distillation, in small.\n"
        "A student writes worked additions such as 347+582+916=; the teacher scores each token, and each token is\n"
        f"learned from as its region deserves. Methods: {', '.join(options.methods)}. Measuring where we start ..."
    )


def _parser() -> argparse.ArgumentParser:
    from .objective.methods import METHODS

    parser = argparse.ArgumentParser(prog="python -m tropd.demo", description="Distil the shipped pair on this CPU.")
    parser.add_argument("--methods", nargs="+", default=["opd", "tropd"], choices=list(METHODS), metavar="METHOD")
    parser.add_argument(
        "--steps", type=int, default=44, help="optimiser steps, doubled for methods with teacher prefixes (default 44)"
    )
    parser.add_argument("--learning-rate", type=float, default=2e-4, help="default 2e-4")
    parser.add_argument("--problems", type=int, default=200, help="held-out problems (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--out", default="runs/demo", help="folder of the runs (default runs/demo)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
