"""The pruned student: layers taken out of the generalist, and a brief healing with TRL's SFTTrainer."""

import tempfile
from collections.abc import Callable
from itertools import islice
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM, TrainerCallback

from tropd.models.pruning import keep_layers
from tropd.proving_ground.domains import DOMAINS, records

KEPT_LAYERS = (0, 3)
MOST_STEPS = 600
STEPS_BETWEEN_EVALUATIONS = 25
ENOUGH = 0.05
"""Healing ends at the first evaluation that finds every domain at least as accurate."""
BATCH_SIZE = 16
LEARNING_RATE = 1e-3


def heal(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    evaluate: Callable[[Qwen3ForCausalLM], dict[str, float]],
    steps: int = MOST_STEPS,
) -> list[tuple[int, dict[str, float]]]:
    """Leave the model with `KEPT_LAYERS` alone, and train it on right responses of all domains until it is `ENOUGH`.

    Returns (step, accuracy of each domain) of every evaluation.
    """
    from trl import SFTConfig, SFTTrainer

    keep_layers(model, KEPT_LAYERS)
    watch = _Watch(evaluate)
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            folder,
            seed=seed,
            max_steps=steps,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=10,
            per_device_train_batch_size=BATCH_SIZE,
            max_length=None,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=25,
        )
        data = Dataset.from_list(_rows(steps * BATCH_SIZE, seed))
        trainer = SFTTrainer(model, args=args, train_dataset=data, processing_class=tokenizer, callbacks=[watch])
        trainer.train()
    model.eval()
    return watch.history


class _Watch(TrainerCallback):
    """Evaluates every few steps and stops the trainer when every domain is good enough."""

    def __init__(self, evaluate: Callable[[Qwen3ForCausalLM], dict[str, float]]) -> None:
        self.evaluate = evaluate
        self.history: list[tuple[int, dict[str, float]]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % STEPS_BETWEEN_EVALUATIONS and state.global_step < state.max_steps:
            return
        self.history.append((state.global_step, self.evaluate(model)))
        model.train()
        print(f"pruned: step {state.global_step}, {self.history[-1][1]}", flush=True)
        control.should_training_stop = min(self.history[-1][1].values()) >= ENOUGH


def _rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Prompts with right responses, the domains in turn."""
    share = -(-count // len(DOMAINS))
    columns = [records(domain, "train", share, seed=1000 + seed) for domain in DOMAINS]
    turns = (row for rows in zip(*columns, strict=True) for row in rows)
    return [{"prompt": row["prompt"], "completion": row["solution"]} for row in islice(turns, count)]
