"""A whole optimiser step: ours beside TRL's `DistillationTrainer` at equal work, and our methods beside each other.

    OMP_NUM_THREADS=1 python benchmarks/whole_step.py
    python benchmarks/whole_step.py --device cuda --student 1024x28 --teacher 2560x36 --vocabulary 151936 --tokens 2048
    python benchmarks/whole_step.py --student real/student20 --teacher models/smollm2 --prompts real/train.jsonl

Random Llamas of the given width and number of layers, or models in folders. `gkd` with `jsd_beta` 1 and TRL's `beta` 1
are one loss, the reverse KL over the whole vocabulary on the student's own samples. Random models end their answers at
random (an end of sequence with probability 2/`tokens` at each position), so that lengths are mixed; their prompts have
16 to 64 tokens. The trainers take turns, each in a process of its own. Times are processor time of one thread (elapsed
time on a GPU) for each token that the student wrote, medians over the steps after the first, with TRL at 1. Memory is
the most that the process held, models and libraries included (on a GPU: that PyTorch allocated).
"""

import argparse
import json
import math
import multiprocessing
import re
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)
from trl import DistillationConfig, DistillationTrainer

from tropd import TrOPDConfig, TrOPDTrainer
from tropd.objective import get_method
from tropd.training import step

PAD, EOS = 0, 1
PROMPT_TOKENS = (16, 64)


@dataclass
class Sizes:
    """What a step is made of; `student` and `teacher` are width and layers, or folders and a file of `prompts`."""

    student: tuple[int, int] | str
    teacher: tuple[int, int] | str
    vocabulary: int
    rows: int
    tokens: int
    device: str
    bf16: bool = False
    prompts: Path | None = None

    @property
    def common(self) -> dict[str, Any]:
        """Arguments of both trainers."""
        return {
            "per_device_train_batch_size": self.rows,
            "max_completion_length": self.tokens,
            "learning_rate": 1e-6,
            "gradient_checkpointing": False,
            "use_cpu": self.device == "cpu",
            "bf16": self.bf16,
            "report_to": "none",
            "disable_tqdm": True,
            "logging_steps": 1000,
            "save_strategy": "no",
            "shuffle_dataset": False,
            "seed": 0,
        }


@dataclass
class Clock(TrainerCallback):
    """Seconds of each step, and of its stages, by the processor's clock or the device's."""

    device: str
    steps: list[dict[str, float]] = field(default_factory=list)
    peak: float = 0.0  # gigabytes
    current: dict[str, float] = field(default_factory=dict)
    began: float = 0.0

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def on_step_begin(self, args, state, control, **kwargs):
        self.current, self.began = {"tokens": 0.0}, self.now()

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(self.current | {"step": self.now() - self.began})
        on_device = self.device == "cuda"
        self.peak = torch.cuda.max_memory_allocated() / 1e9 if on_device else _resident_peak() / 1e9

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = self.now()
        try:
            yield
        finally:
            self.current[name] = self.current.get(name, 0.0) + self.now() - began

    def around(self, owner: Any, method: str, name: str, count: Callable[[Any], int] | None = None) -> Any:
        """Inside, `owner.method` is timed as the stage `name`; `count` reads tokens from what it returns."""
        ordinary = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                result = ordinary(*args, **kwargs)
            if count is not None:
                self.current["tokens"] += count(result)
            return result

        return patch.object(owner, method, timed)


def _resident_peak() -> int:
    """Most bytes that this process held so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def tokenizer(sizes: Sizes) -> PreTrainedTokenizerFast:
    """The student's own, or words `<n>` for the first ids; random models have as many rows as asked for."""
    if isinstance(sizes.student, str):
        return AutoTokenizer.from_pretrained(sizes.student)
    words = {"<pad>": PAD, "<eos>": EOS} | {f"<{n}>": n for n in range(2, min(sizes.vocabulary, 1000))}
    backend = Tokenizer(models.WordLevel(words, unk_token="<2>"))
    from tokenizers.pre_tokenizers import WhitespaceSplit

    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def model(which: tuple[int, int] | str, sizes: Sizes, seed: int) -> PreTrainedModel:
    """The model of a folder, or a random one whose end of sequence has probability 2/`tokens` wherever it is."""
    dtype = torch.bfloat16 if sizes.device == "cuda" else torch.float32
    if isinstance(which, str):
        return AutoModelForCausalLM.from_pretrained(which, dtype=dtype).to(sizes.device)
    width, layers = which
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(width // 64, 1),
        num_key_value_heads=max(width // 128, 1),
        tie_word_embeddings=False,
        max_position_embeddings=4 * sizes.tokens + 1024,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    with torch.device(sizes.device):  # billions of random numbers take a CPU minutes
        made = LlamaForCausalLM(config)
        head = torch.nn.Linear(width, sizes.vocabulary, bias=True)
    with torch.no_grad():
        head.weight.copy_(made.lm_head.weight)
        head.weight[EOS] = 0.0
        head.bias.zero_()
        # The other logits are nearly normal with this variance, so their exponentials sum to V·exp(variance/2).
        variance = float(head.weight[2:].pow(2).sum(-1).mean())
        head.bias[EOS] = math.log(2 / sizes.tokens * sizes.vocabulary) + variance / 2
    made.lm_head = head
    return made.to(sizes.device, dtype)


def prompts(count: int, file: Path | None = None) -> Dataset:
    """The first `count` prompts of a JSONL file, or random ones."""
    if file is not None:
        rows = [json.loads(line) for line in file.read_text().splitlines()[:count]]
        return Dataset.from_list([{"prompt": row["prompt"]} for row in rows])
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(*PROMPT_TOKENS, (count,), generator=generator).tolist()
    words = [torch.randint(2, 1000, (length,), generator=generator).tolist() for length in lengths]
    return Dataset.from_list([{"prompt": " ".join(f"<{n}>" for n in row)} for row in words])


# ---------------------------------------------------------------------- the trainers


def ours(method: str, sizes: Sizes, steps: int, out: Path, data: Dataset | None = None, **settings: Any) -> Clock:
    """Steps of one of our methods, on `data` or on random prompts."""
    clock = Clock(sizes.device)
    fixed = {"max_steps": steps, "num_generations": 1, "rollout_log_steps": 0, "save_final_model": False}
    args = TrOPDConfig(str(out), method=method, **(fixed | sizes.common | settings))
    trainer = TrOPDTrainer(
        model(sizes.student, sizes, 0),
        model(sizes.teacher, sizes, 1),
        args=args,
        train_dataset=data or prompts(sizes.rows * steps, sizes.prompts),
        processing_class=tokenizer(sizes),
        teacher_processing_class=tokenizer(sizes),
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    with (
        clock.around(step, "make_rollouts", "rollout", lambda result: sum(r.student_length for r in result[1])),
        clock.around(step, "score_student", "student scoring"),
        clock.around(step, "score_teachers", "teacher scoring"),
    ):
        trainer.train()
    return clock


def trl(sizes: Sizes, steps: int, out: Path) -> Clock:
    """Steps of TRL's trainer with the same loss."""
    clock = Clock(sizes.device)
    trainer = DistillationTrainer(
        model=model(sizes.student, sizes, 0),
        teacher_model=model(sizes.teacher, sizes, 1),
        args=DistillationConfig(str(out), beta=1.0, max_steps=steps, **sizes.common),
        train_dataset=prompts(sizes.rows * steps, sizes.prompts),
        processing_class=tokenizer(sizes),
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    count = lambda output: int(output["completion_mask"].sum())  # noqa: E731
    with clock.around(trainer, "_generate_and_score_completions", "rollout", count):
        trainer.train()
    return clock


SHOWN = ("rollout", "student scoring", "teacher scoring")


def one_turn(name: str, sizes: Sizes, steps: int) -> Clock:
    """Steps of TRL's trainer or of one of our methods; called in a process of its own."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if name == "trl":
            return trl(sizes, steps, Path(folder))
        settings: dict[str, Any] = {"jsd_beta": 1.0} if name == "gkd" else {}
        settings |= {"guidance_schedule": "none"} if get_method(name).guided else {}
        return ours(name, sizes, steps, Path(folder), **settings)


def summary(clocks: list[Clock]) -> dict[str, float]:
    """Microseconds a student token, of the step and of each stage; the first step of each run warms up."""
    steps = [step for clock in clocks for step in clock.steps[1:]]
    micro = {name: [1e6 * step.get(name, 0.0) / step["tokens"] for step in steps] for name in ("step", *SHOWN)}
    medians = {name: statistics.median(values) for name, values in micro.items()}
    medians["update"] = medians["step"] - sum(medians[name] for name in SHOWN)
    tokens = statistics.mean(step["tokens"] for step in steps)
    return medians | {"tokens a step": tokens, "steps": len(steps), "GB": max(clock.peak for clock in clocks)}


def size_or_folder(text: str) -> tuple[int, int] | str:
    if match := re.fullmatch(r"(\d+)x(\d+)", text):
        return int(match[1]), int(match[2])
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--student", type=size_or_folder, default=(256, 4), help="width x layers or a folder, default 256x4"
    )
    parser.add_argument(
        "--teacher", type=size_or_folder, default=(512, 4), help="width x layers or a folder, default 512x4"
    )
    parser.add_argument("--prompts", type=Path, help="a JSONL file with the column prompt, for models in folders")
    parser.add_argument("--vocabulary", type=int, default=32_768, help="of random models")
    parser.add_argument("--rows", type=int, default=16, help="sequences a step")
    parser.add_argument("--tokens", type=int, default=128, help="longest answer; half of it on average")
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn, the first not counted")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--methods", nargs="*", default=["gkd", "opd", "tropd"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bf16", action="store_true", help="on a CPU too, where the default is float32")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    if isinstance(options.student, str) != (options.prompts is not None):
        parser.error("a student in a folder needs --prompts, and a random one makes its own")
    if options.steps < 2:
        parser.error("--steps must be at least 2: the first of each turn is not counted")
    options.bf16 |= options.device == "cuda"
    sizes = Sizes(**{name: getattr(options, name) for name in Sizes.__dataclass_fields__})
    clocks: dict[str, list[Clock]] = {}
    context = multiprocessing.get_context("spawn")
    for _ in range(options.turns):
        for name in ("trl", *options.methods):
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                clocks.setdefault(name, []).append(pool.submit(one_turn, name, sizes, options.steps).result())
    figures = {name: summary(runs) for name, runs in clocks.items()}
    show(figures)
    if options.json:
        ratios = {name: row["step"] / figures["trl"]["step"] for name, row in figures.items() if name != "trl"}
        record = {"sizes": vars(sizes), "figures": figures, "ratios": ratios}
        options.json.write_text(json.dumps(record, indent=2, default=str) + "\n")


def show(figures: dict[str, dict[str, float]]) -> None:
    names = ("step", *SHOWN, "update")
    print(f"\n| | {' | '.join(f'{name}, µs/token' for name in names)} | step ÷ TRL | tokens a step | GB |")
    print("|---" * (len(names) + 4) + "|")
    for name, row in figures.items():
        cells = " | ".join(f"{row[key]:,.0f}" for key in names)
        ratio = row["step"] / figures["trl"]["step"]
        print(f"| {name} | {cells} | {ratio:.2f} | {row['tokens a step']:.0f} | {row['GB']:.1f} |")


if __name__ == "__main__":
    main()
