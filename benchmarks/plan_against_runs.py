"""Predicted against measured: memory and time of real distillation steps on this machine's CPU.

    python benchmarks/plan_against_runs.py            # all runs
    python benchmarks/plan_against_runs.py --runs pair 5M

Each run is a process of its own: random Qwen3-shaped students and teachers (or the shipped pair) in float32, two
optimiser steps. Memory is the process's resident memory at its highest, by stage. Before it a probe of the same rows
with a quarter of the response length measures the rates that times are made from. Seconds are CPU seconds (with one
thread: those of an idle machine), so that neighbours on a shared machine do not count.

glibc keeps much of what is freed, so a stage after the largest one shows that one's memory. With --release it gives
memory back at once, and every stage shows what it holds itself.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from measured_run import PROMPT, Run, configuration, qwen3

RUNS = {
    "pair": Run((0, 0), (0, 0), rows=64, response=72),
    "5M": Run((4, 256), (8, 512), vocabulary=8_000, rows=16, response=256),
    "5M-accumulate": Run((4, 256), (8, 512), vocabulary=8_000, rows=4, response=256, micro_batches=4),
    "5M-gkd": Run((4, 256), (8, 512), vocabulary=8_000, rows=8, response=128, method="gkd"),
    "30M": Run((8, 512), (12, 768), vocabulary=16_000, rows=8, response=96, checkpointing=True, tied=False),
    "100M": Run((6, 576), (10, 768), vocabulary=150_000, rows=4, response=64),
    "100M-guided": Run((6, 576), (10, 768), vocabulary=150_000, rows=4, response=64, method="tropd"),
}


def main() -> None:
    options = _options()
    results = {}
    for name in options.runs:
        run = RUNS[name]
        probe = _in_process(replace(run, response=max(run.response // 4, 8)), options)
        measured = _in_process(run, options)
        results[name] = {"probe": probe, "measured": measured, "predicted": predict(run, measured, probe)}
        print(f"{name}: done", file=sys.stderr, flush=True)
    print(memory_table(results))
    print(time_table(results))
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--threads", type=int, default=1, help="PyTorch threads")
    parser.add_argument("--release", action="store_true", help="let glibc return freed memory at once (slower)")
    parser.add_argument("--json", help="write every figure to this file")
    return parser.parse_args()


def _in_process(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Measure in a fresh process."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(options.threads),
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    if options.release:
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    with tempfile.TemporaryDirectory() as folder:
        worker = str(Path(__file__).with_name("measured_run.py"))
        command = [sys.executable, worker, json.dumps(asdict(run)), folder, str(options.threads)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def predict(run: Run, measured: dict[str, Any], probe: dict[str, Any]) -> dict[str, Any]:
    """The plan of the run, its times from the probe's rates."""
    from transformers import AutoTokenizer

    from tropd.planning import Rates, model_shape, plan_run
    from tropd.proving_ground.family import GENERALIST, STUDENT, model_path

    shapes = [
        model_shape(qwen3(run, role) if run.vocabulary else path)
        for role, path in (("student", model_path(STUDENT)), ("teacher", model_path(GENERALIST)))
    ]
    prompt = len(AutoTokenizer.from_pretrained(model_path(STUDENT))(PROMPT)["input_ids"])
    plan = plan_run(
        configuration(run, "output"),
        *shapes,
        prompt_tokens=prompt,
        response_tokens=measured["response"],
    )
    tokens = run.rows * run.micro_batches * probe["response"]
    seconds = _stages(probe["steps"][-1], "seconds")
    rates = Rates(
        rollout=tokens / seconds["rollout"],
        student_scoring=tokens / seconds["student scoring"],
        teacher_scoring=tokens / seconds["teacher scoring"],
        teacher_writing=tokens / 4 / seconds["teacher prefixes"] if plan.setup.teacher_writes else None,
    )
    return {
        "parameters": [shape.parameters for shape in shapes],
        "first": {stage.name: stage.total for stage in plan.memory.first_stages},
        "later": {stage.name: stage.total for stage in plan.memory.stages},
        "parts": plan.memory.peak.parts,
        "seconds": plan.time(rates).parts,
    }


UPDATE = ("forward", "backward", "optimiser")


def _stages(step: dict[str, Any], key: str) -> dict[str, float]:
    """A measured step by the names of the plan."""
    update = [step[name][key] for name in UPDATE]
    found = {name: entry[key] for name, entry in step.items() if name not in UPDATE}
    return found | {"update": sum(update) if key == "seconds" else max(update)}


def memory_table(results: dict[str, Any]) -> str:
    """Totals of the process; `growth` is the ratio of what came on top of the process before a model existed."""
    lines = ["| run | student / teacher | step | predicted | measured | ratio | growth | each stage's ratio |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, result in results.items():
        sizes = " / ".join(f"{n / 1e6:.1f}M" for n in result["predicted"]["parameters"])
        base = result["measured"]["baseline"]
        for label, step in (("first", 0), ("second", 1)):
            predicted = result["predicted"]["first" if step == 0 else "later"]
            measured = _stages(result["measured"]["steps"][step], "bytes")
            high, found = max(predicted.values()), max(measured.values())
            ratios = ", ".join(f"{stage} {size / measured[stage]:.2f}" for stage, size in predicted.items())
            lines.append(
                f"| {name} | {sizes} | {label} | {high / 1e6:,.0f} MB | {found / 1e6:,.0f} MB | {high / found:.2f} | "
                f"{(high - base) / (found - base):.2f} | {ratios} |"
            )
    baselines = [result["measured"]["baseline"] / 1e6 for result in results.values()]
    return "\n".join([*lines, f"\nbefore a model exists: {min(baselines):.0f} to {max(baselines):.0f} MB"])


def time_table(results: dict[str, Any]) -> str:
    lines = ["", "| run | predicted | measured | ratio | each stage's ratio |", "|---|---|---|---|---|"]
    for name, result in results.items():
        predicted, measured = result["predicted"]["seconds"], _stages(result["measured"]["steps"][1], "seconds")
        total, found = sum(predicted.values()), sum(measured.values())
        ratios = ", ".join(f"{stage} {size / measured[stage]:.2f}" for stage, size in predicted.items())
        lines.append(f"| {name} | {total:.1f} s | {found:.1f} s | {total / found:.2f} | {ratios} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
