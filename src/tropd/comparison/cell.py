"""One cell: train a student by one method, measure it exactly, write down what happened."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer

from ..evaluation.exact import exact_divergence, sample_responses
from ..training.config import TrOPDConfig
from ..training.errors import NotFinite, RolloutsCollapsed
from ..training.run_directory import write_whole
from ..training.trainer import TrOPDTrainer
from .pair import Text, eos_ids_of, load_model
from .plan import Cell, Recipe

EVALUATION_SEED = 7_000_000
"""Seed of the student's samples on evaluation prompts, the same for every cell."""

CURVES = ("trust/fraction", "grad_norm", "kl/k1", "response/length", "regions/num_guidance", "entropy/student")


def run_cell(recipe: Recipe, cell: Cell, root: str, splits: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Train and measure; the result is on disk under `root`/cells when this returns, a failure included."""
    torch.set_num_threads(1)
    texts = {name: [Text(**text) for text in split] for name, split in splits.items()}
    started = time.perf_counter()
    trainer, failure = _train(recipe, cell, Path(root), texts["train"])
    trained = time.perf_counter()
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    curves = read_curves(Path(str(trainer.args.output_dir)) / "metrics.jsonl")
    result = {
        "label": cell.label,
        "learning_rate": cell.learning_rate,
        "seed": cell.seed,
        "failure": failure,
        "steps": trainer.state.global_step,
        "student_tokens": round(sum(curves["response/length"]) * recipe.rows_per_step),
        "train_seconds": round(trained - started, 1),
        "curves": curves,
        **{name: measure(model, trainer.teacher.model, texts[name], recipe) for name in ("validation", "test")},
    }
    write_whole(Path(root) / "cells" / f"{cell.name}.json", json.dumps(result) + "\n")
    return result


def measure(student, teacher, texts: list[Text], recipe: Recipe) -> dict[str, dict[str, float]]:
    """Exact divergences on the teacher's states (its own texts) and on the student's (its samples)."""
    prompts = [text.prompt_ids for text in texts]
    pad = student.generation_config.pad_token_id or 0
    sampled = sample_responses(
        student,
        prompts,
        max_new_tokens=recipe.max_length,
        eos_ids=eos_ids_of(teacher),
        pad_id=pad,
        seed=EVALUATION_SEED,
    )
    responses = {"teacher_states": [text.response_ids for text in texts], "student_states": sampled}
    return {
        name: exact_divergence(student, teacher, prompts, rows, pad_id=pad).as_dict()
        for name, rows in responses.items()
    }


def read_curves(path: Path) -> dict[str, list[float]]:
    """The logged steps' values of `CURVES`; the first line after a step's metrics is the end-of-run summary."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "response/length" in line]
    return {name: [round(line.get(name, 0.0), 5) for line in steps] for name in CURVES}


def _train(recipe: Recipe, cell: Cell, root: Path, texts: list[Text]) -> tuple[TrOPDTrainer, str | None]:
    settings = dict(recipe.methods[cell.label] or {})
    args = TrOPDConfig(
        output_dir=str(root / "runs" / cell.name),
        method=settings.pop("method", cell.label),
        seed=cell.seed,
        learning_rate=cell.learning_rate,
        max_steps=recipe.steps_of(cell.label),
        per_device_train_batch_size=recipe.rows_per_step,
        num_generations=recipe.rollouts_per_prompt,
        max_completion_length=recipe.max_length,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        **settings,
        **recipe.trainer,
    )
    student = root / "student"
    trainer = TrOPDTrainer(
        str(student),
        str(root / "teacher"),
        args=args,
        train_dataset=Dataset.from_list([text.as_row() for text in texts]),
        processing_class=AutoTokenizer.from_pretrained(str(student)),
    )
    try:
        trainer.train()
    except (RolloutsCollapsed, NotFinite) as failure:
        # Both are findings about the method, published with the cell; anything else is a bug and travels.
        return trainer, str(failure)
    return trainer, None


def load_pair(root: Path):
    """Student and teacher as they are before training."""
    return load_model(root / "student"), load_model(root / "teacher")
