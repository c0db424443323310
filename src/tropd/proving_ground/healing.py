"""The pruned student: layers taken out of the generalist, and a brief healing with TRL's SFTTrainer."""

import tempfile
from itertools import islice
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from tropd.compression import keep_layers
from tropd.proving_ground.domains import DOMAINS, records

KEPT_LAYERS = (0, 1, 3)
STEPS = 100
BATCH_SIZE = 16
LEARNING_RATE = 1e-3


def heal(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, steps: int = STEPS
) -> Qwen3ForCausalLM:
    """The model with `KEPT_LAYERS` alone, trained for `steps` on right responses of all domains."""
    from trl import SFTConfig, SFTTrainer

    keep_layers(model, KEPT_LAYERS)
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            folder,
            seed=seed,
            max_steps=steps,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="cosine",
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
        trainer = SFTTrainer(model, args=args, train_dataset=data, processing_class=tokenizer)
        trainer.train()
    return model.eval()


def _rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Prompts with right responses, the domains in turn."""
    share = -(-count // len(DOMAINS))
    columns = [records(domain, "train", share, seed=1000 + seed) for domain in DOMAINS]
    turns = (row for rows in zip(*columns, strict=True) for row in rows)
    return [{"prompt": row["prompt"], "completion": row["solution"]} for row in islice(turns, count)]
