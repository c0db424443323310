"""Train the family of models and measure it: `python -m tools.proving_ground.build --out DIR`.

Teachers: a generalist that solves all three domains, and from its weights a specialist for each. Students: one
trained briefly from random weights, and the generalist with layers taken out, healed briefly. All learn from generated
solutions by next-token loss on the solution alone. Progress is saved under DIR every minute and each model as soon
as it is done: the same command goes on where it was interrupted, with the same batches, since the batch of a step is a
function of (seed, step). At the end DIR holds a folder for each model and `BUILD.json`.
"""

import argparse
import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast, Qwen3ForCausalLM

from tools.proving_ground import healing
from tools.proving_ground.first_gradients import gradient_norms
from tools.proving_ground.learning import Accuracies, train
from tools.proving_ground.measuring import MAX_NEW_TOKENS, accuracy, distance, mean_entropy
from tools.proving_ground.plans import generalist_plan, specialist_plan, student_config, student_plan, teacher_config
from tools.proving_ground.tokenizer import build_tokenizer
from tropd.proving_ground.domains import DOMAINS, records
from tropd.proving_ground.family import GENERALIST, MODELS, PRUNED, SPECIALISTS, STUDENT
from tropd.proving_ground.problems import LEVEL_SHARES

VALIDATION_PROBLEMS = 60
TEST_PROBLEMS = 200
"""Of each domain, for each accuracy in BUILD.json."""
GRADIENT_SEEDS = (0, 1, 2)
PAIRS = ((STUDENT, GENERALIST), (PRUNED, GENERALIST), *((STUDENT, teacher) for teacher in SPECIALISTS.values()))
"""(student, teacher); with a specialist on its domain alone."""


def main() -> None:
    """Build the family and write what was measured."""
    parser = argparse.ArgumentParser(description="Train the models of the proving ground.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; run again to resume")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, problems and orders (default: 0)")
    parser.add_argument("--hardware", default=f"{os.cpu_count()} CPU cores", help="words for BUILD.json")
    parser.add_argument("--only", choices=MODELS, help="train one model and stop; another process may train others")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.only:
        _trained(arguments.only, build_tokenizer(), arguments.out, arguments.seed)
        return
    record = {
        "command": f"python -m tools.proving_ground.build --out DIR --seed {arguments.seed}",
        "seed": arguments.seed,
        "hardware": arguments.hardware,
        "threads": 1,
        "versions": _versions(),
        **build(arguments.out, arguments.seed),
    }
    (arguments.out / "BUILD.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2), flush=True)


def build(out: Path, seed: int) -> dict[str, Any]:
    """Train or resume every model, save them as Hugging Face folders and return what was measured."""
    tokenizer = build_tokenizer()
    trained = {name: _trained(name, tokenizer, out, seed) for name in MODELS}
    return {
        "level_shares": LEVEL_SHARES,
        "problems": {domain: _once(out, f"lengths-{domain}", _lengths, domain, tokenizer) for domain in DOMAINS},
        "test_problems_of_each_domain": TEST_PROBLEMS,
        "models": {name: trained[name] | _once(out, name, _measured, name, out, tokenizer) for name in MODELS},
        "pairs": {
            f"{pair[0]} from {pair[1]}": _once(out, "-from-".join(pair), _pair, *pair, out, tokenizer) for pair in PAIRS
        },
    }


def save_folder(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a folder that AutoModelForCausalLM and AutoTokenizer load."""
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        max_new_tokens=MAX_NEW_TOKENS,
    )
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    os.replace(aside, folder)


def _trained(name: str, tokenizer: PreTrainedTokenizerFast, out: Path, seed: int) -> dict[str, Any]:
    """Train a model whose folder is not there yet; returns how it was trained."""

    how = _heal if name == PRUNED else _learn
    return _once(out, f"training-{name}", how, name, tokenizer, out, seed)


def _learn(name: str, tokenizer: PreTrainedTokenizerFast, out: Path, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    domains = {specialist: domain for domain, specialist in SPECIALISTS.items()}
    if name in domains:
        plan, model = specialist_plan(domains[name], seed), load(out / GENERALIST)
    else:
        student = name == STUDENT
        plan = student_plan(seed) if student else generalist_plan(seed)
        model = Qwen3ForCausalLM(student_config() if student else teacher_config())
    progress = train(plan, model, tokenizer, out / "progress", _evaluation(list(dict(plan.mixture.shares)), tokenizer))
    save_folder(model, tokenizer, out / name)
    return {
        "from": GENERALIST if name in domains else "random weights",
        "domains": dict(plan.mixture.shares),
        "steps": progress.step,
        "steps_of_schedule": plan.steps,
        "batch_size": plan.batch_size,
        "learning_rate": plan.learning_rate,
        "training_seconds": round(progress.seconds),
        "validation_accuracy_greedy": progress.history[-1][1],
    }


def _heal(name: str, tokenizer: PreTrainedTokenizerFast, out: Path, seed: int) -> dict[str, Any]:
    started = time.monotonic()
    model = load(out / GENERALIST)
    history = healing.heal(model, tokenizer, seed, _evaluation(list(DOMAINS), tokenizer))
    save_folder(model, tokenizer, out / name)
    return {
        "from": GENERALIST,
        "kept_layers": healing.KEPT_LAYERS,
        "steps": history[-1][0],
        "batch_size": healing.BATCH_SIZE,
        "learning_rate": healing.LEARNING_RATE,
        "training_seconds": round(time.monotonic() - started),
        "validation_accuracy_greedy": history[-1][1],
    }


def load(folder: Path) -> Qwen3ForCausalLM:
    """A saved model, in evaluation mode."""
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def _evaluation(domains: list[str], tokenizer: PreTrainedTokenizerFast) -> Callable[[Qwen3ForCausalLM], Accuracies]:
    return lambda model: {d: accuracy(model, tokenizer, d, "validation", VALIDATION_PROBLEMS) for d in domains}


def _measured(name: str, out: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Size, test accuracies and entropies of a finished model."""
    model = load(out / name)
    torch.manual_seed(0)
    return {
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "bytes": sum(file.stat().st_size for file in (out / name).iterdir()),
        "test_accuracy_greedy": {d: accuracy(model, tokenizer, d, "test", TEST_PROBLEMS) for d in DOMAINS},
        "test_accuracy_temperature_1": {d: accuracy(model, tokenizer, d, "test", TEST_PROBLEMS, 1.0) for d in DOMAINS},
        "entropy_of_own_responses": {d: mean_entropy(model, tokenizer, d) for d in DOMAINS},
    }


def _pair(student: str, teacher: str, out: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """How far a student starts from a teacher, and its first gradients."""
    models = load(out / teacher), load(out / student)
    taught = [domain for domain in DOMAINS if teacher in (GENERALIST, SPECIALISTS[domain])]
    prompts = {domain: [domain] for domain in taught} | ({"all": taught} if len(taught) > 1 else {})
    return {
        "distance": {domain: distance(*models, tokenizer, domain) for domain in taught},
        "first_gradient_norms": {
            name: [gradient_norms(out / student, out / teacher, domains, seed) for seed in GRADIENT_SEEDS]
            for name, domains in prompts.items()
        },
    }


def _lengths(domain: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Tokens of prompts and solutions at the default mix of levels."""
    rows = records(domain, "train", 1000, seed=1)
    prompts, solutions = (
        sorted(map(len, tokenizer([r[k] for r in rows])["input_ids"])) for k in ("prompt", "solution")
    )
    return {
        "prompt_tokens_median": prompts[500],
        "solution_tokens_median": solutions[500],
        "solution_tokens_95th_percentile": solutions[950],
        "solution_tokens_most": solutions[-1],
    }


def _once(out: Path, name: str, work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What `work` returns, kept under `out` so that a resumed build does not do it again."""
    path = out / "progress" / f"{name}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        result = work(*arguments)
        path.with_suffix(".partial").write_text(json.dumps(result))
        os.replace(path.with_suffix(".partial"), path)
        print(f"{name}: {path.read_text()}", flush=True)
    return json.loads(path.read_text())


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
    }


if __name__ == "__main__":
    main()
