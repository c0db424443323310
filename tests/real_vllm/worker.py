"""One run with a real vLLM in this process: `python worker.py FOLDER SETTINGS.json` writes what it asked and got.

vLLM keeps global state, so each run has a process of its own.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM

from tools.trace_step import WORDS, tiny_tokenizer
from tropd import TrOPDConfig, TrOPDTrainer


def saved(seed: int, folder: Path) -> str:
    """A random Llama with heads of 32, which vLLM's attention on a CPU has."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_dim=32,
        initializer_range=0.3,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
        max_position_embeddings=256,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def main(folder: Path, settings: dict) -> None:
    """Three steps, each row of which is written down."""
    lora, die_in = settings.pop("lora", False), settings.pop("die_in", None)
    rows = [{"prompt": f"w{i} w{i + 1}", "teacher_response": [5 + (i + j) % 20 for j in range(30)]} for i in range(8)]
    common = {
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_completion_length": 24,
        "vllm_max_model_length": 64,
        "vllm_gpu_memory_utilization": 0.3,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "rollout_log_steps": 1,
        "rollouts_per_log": 8,
        "save_strategy": "no",
        "save_final_model": False,
        "bf16": False,
    }
    trainer = TrOPDTrainer(
        saved(1, folder / "student"),
        saved(2, folder / "teacher"),
        TrOPDConfig(str(folder / "out"), report_to=[], use_cpu=True, use_vllm=True, **common | settings),
        Dataset.from_list(rows),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if lora else None,
    )
    finish(folder, trainer, watch(trainer, die_in))


def watch(trainer: TrOPDTrainer, die_in: int | None = None) -> list[list[dict]]:
    """Everything that vLLM will be asked for and will have written, call by call."""
    engine, asked = trainer.vllm_generation.llm, []
    generate = engine.generate

    def watched(prompts, sampling_params, **options):
        if die_in is not None and trainer.state.global_step + 1 == die_in:
            raise RuntimeError("EngineCore encountered an issue")
        answers = generate(prompts, sampling_params=sampling_params, **options)
        asked.append(
            [
                {"max_tokens": one.max_tokens, "seed": one.seed, "written": list(answer.outputs[0].token_ids)}
                for one, answer in zip(sampling_params, answers, strict=True)
            ]
        )
        return answers

    engine.generate = watched
    return asked


def finish(folder: Path, trainer: TrOPDTrainer, asked: list[list[dict]], **seen: object) -> None:
    """Train, write down what was seen, and end the engine."""
    try:
        trainer.train()
        failure = None
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    written = seen | {
        "engine": json.loads((folder / "out/run.json").read_text())["engine"],
        "asked": asked,
        "logs": trainer.state.log_history,
        "failure": failure,
    }
    (folder / "seen.json").write_text(json.dumps(written))
    trainer.close_engine()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
