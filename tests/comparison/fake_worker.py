"""A worker that trains nothing: `python fake_worker.py ROOT TASK.json`. What it writes looks like a cell's.

FAKE_SECONDS is how long a cell takes; FAKE_CRASH names a cell whose process dies, FAKE_ERROR a cell or a
setting that raises.
"""

import json
import os
import signal
import sys
import time

from tropd.atomic_files import append_jsonl, write_whole
from tropd.comparison.cell import worker
from tropd.comparison.layout import RESULT

HOSTILE = "<script>alert('a rollout')</script>"


def prepare(plan, name, layout):
    if os.environ.get("FAKE_ERROR") == name:
        raise RuntimeError("the fake setting could not")
    folder = layout.running(name)
    scores = {"accuracy": 0.25, "accuracy/mathematics": 0.25, "student_states/reverse_kl": 1.5}
    write_whole(folder / "before.json", json.dumps({"teacher": scores, "student": scores, "point": {}}))
    worker._place(layout, name)


def run(plan, cell, layout):
    layout.tell(cell.name, "step 3 of about 8", 0.375)
    time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
    if os.environ.get("FAKE_CRASH") == cell.name:
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("FAKE_ERROR") == cell.name:
        raise RuntimeError("the fake cell could not")
    folder = layout.running(cell.name)
    write_whole(folder / RESULT, json.dumps(result(cell)))
    append_jsonl(folder / "metrics.jsonl", [step(number) for number in range(1, 9)])
    append_jsonl(folder / "rollouts" / "step-000001.jsonl", [rollout(1)])
    worker._move(folder, layout.cell(cell.name))


def result(cell):
    """Better with the length of the label and the seed, so that every number is known."""
    value = 1 / (1 + len(cell.label) + cell.seed) + cell.learning_rate
    right = "".join(str(int(n % 10 < len(cell.label))) for n in range(10))
    accuracy = right.count("1") / len(right)
    scores = {"accuracy": accuracy, "accuracy/mathematics": accuracy, "student_states/reverse_kl": value}
    return {
        **vars(cell), "failure": None, "error": None, "steps": 8, "student_tokens": 1000, "prefix_tokens": 0,
        "train_seconds": 1.0, "seconds": 2.0, "scores": scores, "right": {"mathematics": right},
        "points": [{"step": n, "student_tokens": n, "scores": {"accuracy": n / 10}} for n in (0, 4, 8)],
        "environment": {"versions": {"tropd": "0"}, "python": "3", "commit": None, "threads": 1},
    }  # fmt: skip


def step(number):
    return {
        "step": number, "trust/fraction": 0.9, "grad_norm": 1 / number, "entropy/student": 0.5, "kl/k1": 0.2,
        "response/length": 30.0, "regions/num_trust": 90.0, "regions/num_outlier": 10.0, "regions/num_guidance": 0.0,
    }  # fmt: skip


def rollout(number):
    token = {"id": 5, "log_ratio": -3.0}
    tokens = [{**token, "text": HOSTILE, "region": "outlier"}, {**token, "text": "a\n", "region": "trust"}]
    return {"step": number, "prompt": f"1+2={HOSTILE}", "tokens": tokens}


worker._prepare, worker._run = prepare, run

if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[1:]))
