"""How good is the preflight? Its forecast beside real first gradients, and its verdict on pairs of known kind.

    python benchmarks/preflight_calibration.py --stories DIR --out DIR

DIR of `--stories` is the folder of the pretrained story model. The probe reads other prompts than the step whose
gradients are measured. About two minutes on one CPU core. The tables go to standard output, and to docs/preflight.md.
"""

import argparse
import contextlib
import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from preflight_pairs import STORY_STUDENTS, with_another_vocabulary, with_random_weights, write_story_student
from transformers import AutoTokenizer, TrainerCallback

from tropd import TrOPDConfig, TrOPDTrainer
from tropd.comparison.cell.texts import load_model
from tropd.comparison.cell.texts import stories as own_texts
from tropd.comparison.plan_file import load_plan
from tropd.preflight.measure import measure
from tropd.preflight.measurement import PairMeasurement
from tropd.preflight.probe import probe
from tropd.preflight.verdict import judge
from tropd.proving_ground.domains import records
from tropd.proving_ground.family import GENERALIST, STUDENT, model_path

PROMPTS, ROLLOUTS = 16, 4
RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "stories260k.yaml"
STEP_METHODS: dict[str, dict[str, Any]] = {
    "opd": {},
    "mask_outlier": {},
    "tropd": {"guidance_schedule": "none"},  # without prefixes, so that all three see the same rollouts
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two models, prompts for both, and the budget of a response."""

    name: str
    student: Any
    teacher: Any
    tokenizer: str
    rows: list[dict[str, Any]]
    max_length: int


class GradientNorm(TrainerCallback):
    """The norm of the whole gradient before the optimiser's step."""

    value = math.nan

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        squares = [p.grad.double().square().sum() for p in model.parameters() if p.grad is not None]
        self.value = torch.stack(squares).sum().sqrt().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stories", required=True, help="folder of the story model")
    parser.add_argument("--out", required=True, help="folder of the students")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pairs = [shipped_pair(), *story_pairs(options.stories, Path(options.out))]
    print(
        "| pair | trust | r < −2 | r < −5 | K1 | ‖opd‖ | ‖mask‖ | ‖tropd‖ | real ratio | forecast | real ÷ forecast |"
    )
    print("|" + "---|" * 11)
    for pair in pairs:
        print(_row(pair, [gradients(pair, seed, options.out) for seed in options.seeds]), flush=True)
    print("\n| pair | trust | gap | student NLL | teacher NLL | prompts: student | teacher | log V | verdict |")
    print("|" + "---|" * 9)
    for pair in [*pairs, *doubtful_pairs(options.stories, Path(options.out))]:
        print(_verdict_row(pair, options.out), flush=True)


def shipped_pair() -> Pair:
    student, teacher = str(model_path(STUDENT)), str(model_path(GENERALIST))
    problems = records("mathematics", "train", 2 * PROMPTS, seed=0, level=2)
    return Pair("shipped", student, teacher, student, [{"prompt": row["prompt"]} for row in problems], 72)


def story_pairs(stories: str, out: Path) -> list[Pair]:
    rows = _story_rows(stories)
    return [
        Pair(name, str(write_story_student(stories, change, out / name.replace(" ", "-"))), stories, stories, rows, 64)
        for name, change in STORY_STUDENTS.items()
        if name != "whole"
    ]


def doubtful_pairs(stories: str, out: Path) -> list[Pair]:
    """Pairs that something is wrong with."""
    rows = _story_rows(stories)
    pruned = str(out / "without-layer-2")
    rounded = load_model(stories).bfloat16()
    return [
        Pair("same model twice", stories, load_model(stories), stories, rows, 64),
        Pair("its copy in bfloat16", stories, rounded, stories, rows, 64),
        Pair("teacher with random weights", pruned, with_random_weights(load_model(stories)), stories, rows, 64),
        Pair("teacher with permuted ids", pruned, with_another_vocabulary(load_model(stories)), stories, rows, 64),
    ]


def _story_rows(stories: str) -> list[dict[str, Any]]:
    plan = load_plan(RECIPE, stories)
    plan = dataclasses.replace(plan, prompts={"train": 2 * PROMPTS, "validation": 0, "test": 0})
    texts = own_texts(stories, plan.settings["stories"].stories, plan)
    return [{"prompt": text.prompt} for text in texts["train"]]


def gradients(pair: Pair, seed: int, out: str) -> tuple[PairMeasurement, dict[str, float]]:
    """The measurement of a probe on the second half of the prompts, and real norms on the first half."""
    norms, measured = {}, None
    for method, changes in STEP_METHODS.items():
        recorder = GradientNorm()
        trainer = build(pair, method, seed, out, [recorder], **changes)
        if measured is None:
            measured = measure(probe(trainer, pair.rows[PROMPTS:]))
        with contextlib.redirect_stdout(sys.stderr):
            trainer.train()
        norms[method] = recorder.value
    assert measured is not None
    return measured, norms


def build(pair: Pair, method: str, seed: int, out: str, callbacks: Sequence[TrainerCallback] = (), **changes: Any):
    args = TrOPDConfig(
        str(Path(out) / "runs"),
        method=method,
        seed=seed,
        max_steps=1,
        learning_rate=1e-12,
        max_grad_norm=0.0,
        per_device_train_batch_size=PROMPTS * ROLLOUTS,
        per_device_eval_batch_size=PROMPTS * ROLLOUTS,
        num_generations=ROLLOUTS,
        max_completion_length=pair.max_length,
        shuffle_dataset=False,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        save_final_model=False,
        report_to="none",
        disable_tqdm=True,
        rollout_log_steps=0,
        **changes,
    )
    return TrOPDTrainer(
        pair.student,
        pair.teacher,
        args=args,
        train_dataset=Dataset.from_list(pair.rows[:PROMPTS]),
        processing_class=AutoTokenizer.from_pretrained(pair.tokenizer),
        teacher_processing_class=AutoTokenizer.from_pretrained(pair.tokenizer),
        callbacks=list(callbacks),
    )


def _row(pair: Pair, results: list[tuple[PairMeasurement, dict[str, float]]]) -> str:
    measured = [m for m, _ in results]
    real = [norms["opd"] / norms["mask_outlier"] for _, norms in results]
    forecast = [m.gradient.ratio for m in measured if m.gradient is not None]
    quotients = [ours / theirs for ours, theirs in zip(real, forecast, strict=True)]
    cells = [
        *(f"{_mean([getattr(m, name) for m in measured]):.2f}" for name in ("trust_fraction",)),
        *(f"{_mean([getattr(m, name) for m in measured]):.1%}" for name in ("outlier_share", "deep_outlier_share")),
        f"{_mean([m.k1 for m in measured]):.2f}",
        *(f"{_mean([norms[method] for _, norms in results]):.2f}" for method in STEP_METHODS),
        *(f"{_mean(v):.1f} ({', '.join(f'{x:.1f}' for x in v)})" for v in (real, forecast)),
        f"{_mean(quotients):.2f}",
    ]
    return f"| {pair.name} | {' | '.join(cells)} |"


def _verdict_row(pair: Pair, out: str) -> str:
    trainer = build(pair, "opd", 0, out)
    m = measure(probe(trainer, pair.rows[PROMPTS:]))
    verdict = judge(m, trainer.method, max_completion_length=pair.max_length)
    print(*verdict.sentences, sep="\n", file=sys.stderr)
    numbers = (
        m.trust_fraction,
        m.mean_abs_gap,
        m.student_nll,
        m.teacher_nll,
        m.student_prompt_nll,
        m.teacher_prompt_nll,
        m.chance_nll,
    )
    cells = " | ".join("–" if value is None else f"{value:.3g}" for value in numbers)
    return f"| {pair.name} | {cells} | `{verdict.kind}` |"


def _mean(values: Sequence[Any]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
