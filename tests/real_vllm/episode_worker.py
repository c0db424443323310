"""A guided run of the storeroom with a real vLLM: `python episode_worker.py FOLDER SETTINGS.json`, as `worker.py`."""

import json
import random
import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, TrainerCallback

sys.path.append(str(Path(__file__).resolve().parents[2]))

from real_vllm.worker import finish, watch
from tools.proving_ground.expert import expert
from tropd import TrOPDConfig, TrOPDTrainer
from tropd.proving_ground.storeroom import Storeroom, model_path, orders
from tropd.training import step

HALF = 0.5
"""Share of each recorded episode's turns that are the teacher's."""


def widened(folder: Path) -> str:
    """The storeroom's student with heads of 32, which vLLM's attention on a CPU has, instead of 16: the same function.

    Entry i of a head becomes entry 2i, whose rotation with twice the width is the same; the others are 0. So the norm
    of a key or query is divided by half as many entries, and the product by the root of twice as many.
    """
    narrow = AutoModelForCausalLM.from_pretrained(str(model_path("student")))
    config = Qwen3Config(**narrow.config.to_dict() | {"head_dim": 2 * narrow.config.head_dim})
    wide, state = Qwen3ForCausalLM(config), narrow.state_dict()
    heads, width = config.num_attention_heads, narrow.config.head_dim
    for name, weight in state.items():
        if any(part in name for part in ("q_proj", "k_proj", "v_proj")):
            spread = weight.new_zeros(heads, 2 * width, weight.shape[1])
            spread[:, ::2] = weight.view(heads, width, -1)
            state[name] = spread.flatten(0, 1)
        elif "o_proj" in name:
            spread = weight.new_zeros(weight.shape[0], heads, 2 * width)
            spread[:, :, ::2] = weight.view(-1, heads, width)
            state[name] = spread.flatten(1)
        elif "q_norm" in name or "k_norm" in name:
            state[name] = weight.new_zeros(2 * width)
            state[name][::2] = weight if "q_norm" in name else weight / 2**0.5
    wide.load_state_dict(state)
    tokenizer = AutoTokenizer.from_pretrained(str(model_path("student")))
    ids = torch.tensor([tokenizer("bring 3 to a . boxes b c d .")["input_ids"]])
    torch.testing.assert_close(wide(ids).logits, narrow(ids).logits, rtol=0, atol=1e-4)
    wide.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


class Watcher(TrainerCallback):
    """The rollouts of every step, and how often vLLM had been asked by then."""

    def __init__(self) -> None:
        self.steps: list[dict] = []
        self.trainer: TrOPDTrainer

    def on_step_end(self, args, state, control, **given):
        rollouts = [rollout for batch in self.trainer._buffered_inputs for rollout in batch.rollouts]
        tokenizer = self.trainer.processing_class
        self.steps.append(
            {
                "calls": len(self.asked),
                "rollouts": [
                    {
                        "row": rollout.row,
                        "prompt": tokenizer.decode(rollout.prompt_ids),
                        "turns": [
                            {
                                "start": turn.start,
                                "ids": rollout.response[turn.start : turn.stop],
                                "text": tokenizer.decode(rollout.response[turn.start : turn.stop]),
                                "by_teacher": sorted(set(rollout.by_teacher[turn.start : turn.stop])),
                            }
                            for turn in rollout.turns
                        ],
                    }
                    for rollout in rollouts
                ],
            }
        )


def main(folder: Path, settings: dict) -> None:
    """Two steps, each of which begins with recorded turns."""
    step.guidance_fraction = lambda *_: HALF
    by_prompt = {order.prompt: order for order in orders("train", 32, seed=5, levels=(1, 2))}  # contents differ, too
    found = list(by_prompt.values())[:8]
    episodes = [expert(order, random.Random(number)) for number, order in enumerate(found)]
    watcher = Watcher()
    common = {
        "method": "tropd",
        "guidance_unit": "turns",
        "guidance_length": "share",
        "guidance_schedule": "constant",
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": 2,
        "max_completion_length": 120,
        "vllm_max_model_length": 200,
        "vllm_gpu_memory_utilization": 0.3,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "save_final_model": False,
        "bf16": False,
    }
    trainer = TrOPDTrainer(
        widened(folder / "student"),
        str(model_path("teacher")),
        TrOPDConfig(str(folder / "out"), report_to=[], use_cpu=True, use_vllm=True, **common | settings),
        Dataset.from_list(
            [order.row() | {"teacher_response": one} for order, one in zip(found, episodes, strict=True)]
        ),
        environment_factory=Storeroom,
        callbacks=[watcher],
    )
    watcher.trainer, watcher.asked = trainer, watch(trainer)
    recorded = {order.prompt: episode for order, episode in zip(found, episodes, strict=True)}
    finish(folder, trainer, watcher.asked, steps=watcher.steps, recorded=recorded)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
