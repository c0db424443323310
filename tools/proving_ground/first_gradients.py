"""The paper's problem, measured: how long the first gradients of `opd`, `mask_outlier` and `tropd` are on one pair.

Each method takes one step of the trainer on the same prompts and, since a seed determines them, the same rollouts;
`tropd` without teacher prefixes for that reason. The norm is that of the whole gradient before clipping. The learning
rate is as good as zero, so nothing is learned and every method meets the same student.
"""

import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback

from tools.proving_ground.measuring import MAX_NEW_TOKENS
from tropd.proving_ground.domains import records

PROMPTS, ROLLOUTS = 18, 4
METHODS: dict[str, dict[str, Any]] = {"opd": {}, "mask_outlier": {}, "tropd": {"guidance_schedule": "none"}}


def gradient_norms(student: Path, teacher: Path, domains: list[str], seed: int) -> dict[str, float]:
    """Norm of each method's first gradient on prompts of the domains alike, and OPD's over `mask_outlier`'s."""
    rows = [
        {"prompt": row["prompt"]}
        for domain in domains
        for row in records(domain, "train", PROMPTS // len(domains), seed=100 + seed)
    ]
    norms = {name: _norm(student, teacher, rows, name, seed) for name in METHODS}
    return {name: round(norm, 4) for name, norm in norms.items()} | {
        "opd_over_mask_outlier": round(norms["opd"] / norms["mask_outlier"], 2)
    }


class _Recorder(TrainerCallback):
    """Keeps the norm of the gradient just before the optimiser's step."""

    norm = float("nan")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.norm = sum(p.grad.double().square().sum().item() for p in model.parameters() if p.grad is not None) ** 0.5


def _norm(student: Path, teacher: Path, rows: list[dict[str, Any]], method: str, seed: int) -> float:
    from tropd import TrOPDConfig, TrOPDTrainer

    recorder = _Recorder()
    with tempfile.TemporaryDirectory() as folder:
        args = TrOPDConfig(
            folder,
            method=method,
            seed=seed,
            max_steps=1,
            learning_rate=1e-12,
            max_grad_norm=0.0,
            per_device_train_batch_size=PROMPTS * ROLLOUTS,
            num_generations=ROLLOUTS,
            max_completion_length=MAX_NEW_TOKENS,
            shuffle_dataset=False,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            save_final_model=False,
            report_to="none",
            disable_tqdm=True,
            rollout_log_steps=0,
            **METHODS[method],
        )
        trainer = TrOPDTrainer(
            str(student),
            str(teacher),
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(student),
            teacher_processing_class=AutoTokenizer.from_pretrained(teacher),
            callbacks=[recorder],
        )
        trainer.train()
    return recorder.norm
