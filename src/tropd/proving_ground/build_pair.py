"""Train the embedded teacher and student: `python -m tropd.proving_ground.build_pair --out DIR`.

Both learn from generated workings by next-token loss on the working alone. The teacher trains to the end of
its schedule and must then solve 95% of validation problems; the student stops at the first evaluation that
finds it inside its band, so that it knows the form and still errs often. Progress is saved under DIR every
minute: the same command goes on where it was interrupted, with the same batches, since the batch of a step is
a function of (seed, step). At the end DIR holds `teacher`, `student` and `BUILD.json`. It takes about a
quarter of an hour.
"""

import argparse
import json
import math
import os
import platform
import random
import time
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tropd.proving_ground.arithmetic import (
    DEFAULT_LEVEL,
    Split,
    distinct_problems,
    grade,
    problem_stream,
    worked_answer,
)
from tropd.proving_ground.pair import MAX_NEW_TOKENS, build_tokenizer, prompts, student_config, teacher_config

SECONDS_BETWEEN_SAVES = 60.0
LEVEL_SHARES = {1: 0.1, 2: 0.2, 3: 0.7}
"""How often a batch comes from each level; short sums teach the model where the digits are."""


@dataclass(frozen=True)
class Plan:
    """How one model is trained; `TEACHER` and `STUDENT` below are the two in use.

    `band` holds the lowest and highest greedy validation accuracy to accept. With `stops_in_band`, training
    ends at the first evaluation that reaches it; without, all steps are taken.
    """

    name: str
    steps: int
    learning_rate: float
    band: tuple[float, float]
    stops_in_band: bool
    batch_size: int = 32
    warmup_steps: int = 50
    steps_between_evaluations: int = 100


TEACHER = Plan("teacher", steps=1800, learning_rate=3e-3, band=(0.95, 1.0), stops_in_band=False)
STUDENT = replace(TEACHER, name="student", band=(0.25, 0.5), stops_in_band=True, steps_between_evaluations=25)


@dataclass
class Progress:
    """Where the training of one model stands; `history` holds (step, greedy validation accuracy)."""

    step: int
    seconds: float
    history: list[tuple[int, float]]


def main() -> None:
    """Build both models and write what was measured."""
    parser = argparse.ArgumentParser(description="Train the embedded teacher and student on column addition.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; run again to resume")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, problems and orders (default: 0)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--hardware", default=f"{os.cpu_count()} CPU cores", help="words for BUILD.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    command = f"python -m tropd.proving_ground.build_pair --out DIR --seed {arguments.seed}"
    record = {"command": command, "seed": arguments.seed}
    record |= {"hardware": arguments.hardware, "threads": arguments.threads}
    record |= build(arguments.out, arguments.seed)
    (arguments.out / "BUILD.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2), flush=True)


def build(out: Path, seed: int) -> dict[str, Any]:
    """Train or resume both models, save them as Hugging Face folders and return what was measured."""
    tokenizer = build_tokenizer()
    models, records = {}, {}
    for plan, config in ((TEACHER, teacher_config()), (STUDENT, student_config())):
        model, progress = train(plan, config, tokenizer, out / "progress", seed)
        save_folder(model, tokenizer, out / plan.name)
        models[plan.name] = model
        records[plan.name] = _model_record(plan, model, tokenizer, progress)
    return {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "level": DEFAULT_LEVEL,
        "level_shares_in_training": LEVEL_SHARES,
        **records,
        "start_distance": distance(models["teacher"], models["student"], tokenizer),
    }


def train(
    plan: Plan, config: Qwen3Config, tokenizer: PreTrainedTokenizerFast, folder: Path, seed: int
) -> tuple[Qwen3ForCausalLM, Progress]:
    """Run a plan from its start or from its last save; refuse a model that misses its band."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    progress = _load_progress(folder / f"{plan.name}.pt", model, optimizer)
    clock, last_save = time.monotonic() - progress.seconds, time.monotonic()
    while progress.step < plan.steps and not _is_done(plan, progress):
        batch = _batch(tokenizer, plan.batch_size, seed, progress.step)
        loss = _update(model, optimizer, batch, plan.learning_rate * _rate_share(plan, progress.step))
        progress.step += 1
        if progress.step % plan.steps_between_evaluations == 0:
            progress.history.append((progress.step, accuracy(model, tokenizer, "validation", 200)))
            print(_status_line(plan, progress, loss), flush=True)
        progress.seconds = time.monotonic() - clock
        if time.monotonic() - last_save > SECONDS_BETWEEN_SAVES:
            _save_progress(folder / f"{plan.name}.pt", model, optimizer, progress)
            last_save = time.monotonic()
    _save_progress(folder / f"{plan.name}.pt", model, optimizer, progress)
    _check_band(plan, progress)
    return model.eval(), progress


@torch.no_grad()
def accuracy(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    split: Split,
    count: int,
    temperature: float = 0.0,
) -> float:
    """Share of `count` problems whose whole working is right; greedy at temperature 0."""
    problems = distinct_problems(split, count, seed="evaluation")
    texts = generate(model, tokenizer, [problem.prompt for problem in problems], temperature)
    return sum(grade(problem, text).correct for problem, text in zip(problems, texts, strict=True)) / count


def generate(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str], temperature: float = 0.0
) -> list[str]:
    """Response to each prompt, without special tokens; greedy at temperature 0."""
    prompt_length, ids, _ = _roll_out(model, tokenizer, texts, temperature)
    return tokenizer.batch_decode(ids[:, prompt_length:], skip_special_tokens=True)


@torch.no_grad()
def distance(
    teacher: Qwen3ForCausalLM, student: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int = 256
) -> dict[str, float]:
    """Distance per token of the student's own rollouts at temperature 1.

    The sampled total variation is E[1 − min(1, π_T/π_S)], which the trust region logs; the exact one sums
    over the vocabulary. The two agree up to sampling noise.
    """
    torch.manual_seed(0)
    texts = [row["prompt"] for row in prompts("train", count, seed=0)]
    prompt_length, ids, mask = _roll_out(student, tokenizer, texts, temperature=1.0)
    is_response = mask[:, prompt_length:].bool()
    teacher_logp, student_logp = (
        model(ids, attention_mask=mask).logits[:, prompt_length - 1 : -1].log_softmax(-1)[is_response]
        for model in (teacher, student)
    )
    tokens = ids[:, prompt_length:][is_response].unsqueeze(1)
    log_ratio = (teacher_logp - student_logp).gather(1, tokens)
    measured = {
        "total_variation_sampled": 1 - log_ratio.clamp(max=0).exp().mean(),
        "total_variation_exact": 0.5 * (teacher_logp.exp() - student_logp.exp()).abs().sum(1).mean(),
        "reverse_kl_sampled": -log_ratio.mean(),
        "student_entropy": -(student_logp.exp() * student_logp).sum(1).mean(),
        "teacher_entropy": -(teacher_logp.exp() * teacher_logp).sum(1).mean(),
    }
    rounded = {name: round(value.item(), 4) for name, value in measured.items()}
    return {"rollouts": count, "response_tokens": len(tokens), **rounded}


def save_folder(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a folder that AutoModelForCausalLM and AutoTokenizer load."""
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        max_new_tokens=MAX_NEW_TOKENS,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def _roll_out(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str], temperature: float
) -> tuple[int, Tensor, Tensor]:
    """Length of the padded prompts, ids of prompts and responses, and a mask that ends with each eos."""
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    chosen = sampling if temperature else {"do_sample": False}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    was_training = model.training
    ids = model.eval().generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, **ends, **chosen)
    model.train(was_training)
    prompt_length = inputs["input_ids"].shape[1]
    is_eos = (ids[:, prompt_length:] == tokenizer.eos_token_id).long()
    before_end = is_eos.cumsum(1) - is_eos == 0
    return prompt_length, ids, torch.cat([inputs["attention_mask"], before_end.long()], 1)


def _batch(tokenizer: PreTrainedTokenizerFast, size: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Token ids and labels [size, T] of a step, by (seed, step); labels are −100 off the working."""
    rng = random.Random(f"batch {seed} {step}")
    level = rng.choices(list(LEVEL_SHARES), list(LEVEL_SHARES.values()))[0]
    problems = list(islice(problem_stream("train", f"{seed} {step}", level), size))
    texts = [problem.prompt + worked_answer(problem, rng) + tokenizer.eos_token for problem in problems]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[:, : len(problems[0].prompt)] = -100
    return inputs["input_ids"], labels


def _update(
    model: Qwen3ForCausalLM,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    learning_rate: float,
) -> float:
    ids, labels = batch
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    loss = F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def _rate_share(plan: Plan, step: int) -> float:
    """Linear warm-up, then a cosine to 2% of the learning rate at the last step."""
    if step < plan.warmup_steps:
        return (step + 1) / plan.warmup_steps
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / plan.steps))


def _status_line(plan: Plan, progress: Progress, loss: float) -> str:
    reached = f"loss {loss:.3f}, accuracy {progress.history[-1][1]:.3f}, {progress.seconds:.0f} s"
    return f"{plan.name}: step {progress.step} of {plan.steps}, {reached}"


def _is_done(plan: Plan, progress: Progress) -> bool:
    return plan.stops_in_band and bool(progress.history) and progress.history[-1][1] >= plan.band[0]


def _check_band(plan: Plan, progress: Progress) -> None:
    low, high = plan.band
    reached = progress.history[-1][1]
    if not low <= reached <= high:
        raise RuntimeError(
            f"The {plan.name} stands at {reached:.3f} greedy accuracy after {progress.step} steps, outside "
            f"[{low}, {high}]. Remove the progress folder and try another --seed, or change its plan."
        )


def _model_record(
    plan: Plan, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, progress: Progress
) -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "parameters": model.num_parameters(),
        "dtype": "float32",
        "plan": asdict(plan),
        "steps_trained": progress.step,
        "training_seconds": round(progress.seconds),
        "validation_accuracy_greedy": progress.history[-1][1],
        "test_accuracy_greedy": accuracy(model, tokenizer, "test", 400),
        "test_accuracy_temperature_1": accuracy(model, tokenizer, "test", 400, temperature=1.0),
        "test_problems": 400,
    }


def _save_progress(path: Path, model: Qwen3ForCausalLM, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": asdict(progress)}
    torch.save(state, path.with_suffix(".partial"))
    os.replace(path.with_suffix(".partial"), path)


def _load_progress(path: Path, model: Qwen3ForCausalLM, optimizer: torch.optim.Optimizer) -> Progress:
    if not path.is_file():
        return Progress(step=0, seconds=0.0, history=[])
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    progress = Progress(**state["progress"])
    print(f"{path.stem}: resumed at step {progress.step}", flush=True)
    return progress


if __name__ == "__main__":
    main()
