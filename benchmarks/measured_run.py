"""One measured run in a process of its own: `python measured_run.py '<run as JSON>' FOLDER THREADS` prints its figures.

Started by `plan_against_runs.py`.
"""

import json
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROMPT = "add the columns. ones: 8 5. tens: 7 4. hundreds: 6 3.\n"


@dataclass(frozen=True)
class Run:
    """One measured run; sizes are (layers, width) of a Qwen3 with 64-wide heads, 0 layers for the shipped pair."""

    student: tuple[int, int]
    teacher: tuple[int, int]
    vocabulary: int = 0
    rows: int = 8
    response: int = 128
    micro_batches: int = 1
    method: str = "fkl_outlier"
    checkpointing: bool = False
    tied: bool = True


def measure(run: Run, folder: str, threads: int) -> dict[str, Any]:
    """Train two steps and note each stage's largest resident memory and its seconds."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer

    from tropd import TrOPDTrainer
    from tropd.shipped import locate
    from tropd.training import step

    torch.set_num_threads(threads)
    baseline = _resident()
    student, teacher = (_model(run, role) for role in ("student", "teacher"))
    tokenizer = AutoTokenizer.from_pretrained(locate("shipped:student"))
    trainer = TrOPDTrainer(
        student,
        teacher,
        args=configuration(run, folder),
        train_dataset=Dataset.from_list([{"prompt": PROMPT}] * 64),
        processing_class=tokenizer,
        teacher_processing_class=tokenizer,
    )
    steps: list[dict[str, Any]] = []
    watch = _Watch(steps)
    stage = trainer.rollout_stage
    stage.find_prefixes = watch("teacher prefixes", stage.find_prefixes)
    stage.roll_out = watch("rollout", stage.roll_out)
    step.score_student = watch("student scoring", step.score_student)  # this process measures one run
    step.score_teachers = watch("teacher scoring", step.score_teachers)
    trainer._compute_loss = watch("forward", trainer._compute_loss)
    trainer.accelerator.backward = watch("backward", trainer.accelerator.backward)
    trainer.create_optimizer_and_scheduler(num_training_steps=2)
    trainer.optimizer.step = watch("optimiser", trainer.optimizer.step)
    build = trainer._build_batch

    def new_step(*arguments: Any) -> Any:
        steps.append({})
        return build(*arguments)

    trainer._build_batch = new_step
    trainer.train()
    last = [record for record in trainer.state.log_history if "response/length" in record][-1]
    response = last["response/length"] + last["guidance/prefix_length"]
    return {"baseline": baseline, "steps": steps, "response": response}


class _Watch:
    """Wraps a stage's function: adds its seconds and keeps its largest resident memory in the current step."""

    def __init__(self, steps: list[dict[str, Any]]):
        self.steps = steps

    def __call__(self, name: str, function: Any) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
            started = time.process_time()
            result = function(*arguments, **options)
            seconds, high = time.process_time() - started, _high_water()
            entry = self.steps[-1].setdefault(name, {"seconds": 0.0, "bytes": 0})
            entry["seconds"] += seconds
            entry["bytes"] = max(entry["bytes"], high)
            return result

        return wrapped


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _high_water() -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _model(run: Run, role: str) -> Any:
    from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

    from tropd.proving_ground.family import GENERALIST, STUDENT, model_path

    if not run.vocabulary:
        path = model_path(STUDENT if role == "student" else GENERALIST)
        return AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    return Qwen3ForCausalLM(qwen3(run, role))


def qwen3(run: Run, role: str) -> Any:
    from transformers import Qwen3Config

    layers, width = run.student if role == "student" else run.teacher
    return Qwen3Config(
        vocab_size=run.vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=run.tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def configuration(run: Run, folder: str) -> Any:
    from tropd import TrOPDConfig

    return TrOPDConfig(
        folder,
        method=run.method,
        max_steps=2,
        per_device_train_batch_size=run.rows,
        gradient_accumulation_steps=run.micro_batches,
        max_completion_length=run.response,
        gradient_checkpointing=run.checkpointing,
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
        save_final_model=False,
        rollout_log_steps=0,
        report_to="none",
        disable_tqdm=True,
        learning_rate=1e-6,
    )


if __name__ == "__main__":
    fields = {
        name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(sys.argv[1]).items()
    }
    print(json.dumps(measure(Run(**fields), sys.argv[2], int(sys.argv[3]))))
