"""Folders of runs, written by hand as `tropd train` writes them."""

import json
from pathlib import Path
from typing import Any

HOSTILE = "</script><img src=x onerror=alert(2)>\u202eturned\x1b[2J&\u2028"


def token(text: str, region: str = "trust", ratio: float | None = -0.1, **more: Any) -> dict[str, Any]:
    teacher = None if ratio is None else round(ratio - 0.5, 6)
    weights = {"trust_weight": float(region == "trust"), "outlier_weight": float(region == "outlier")}
    numbers = {"student_logp": -0.5, "rollout_logp": -0.5, "teacher_logp": teacher, "log_ratio": ratio}
    return {"id": 7, "text": text, "region": region, **numbers, **weights, "loss": 0.25, "direct": None, **more}


def rollout(step: int, row: int, tokens: list[dict[str, Any]], prompt: str = "add 1 and 2") -> dict[str, Any]:
    return {
        "step": step,
        "row": row,
        "prompt": prompt,
        "teacher_context": prompt,
        "response": "".join(one["text"] for one in tokens),
        "prefix_length": sum(one["region"] == "guidance" for one in tokens),
        "included": True,
        "ended_by": 2,
        "tokens": tokens,
    }


def write_run(folder: Path, *, rollouts: list[dict[str, Any]] = (), steps: int = 4, **method: Any) -> Path:  # type: ignore[assignment]
    """A guided run with a preflight and two evaluations."""
    folder.mkdir(parents=True)
    described = {"name": "tropd", "summary": "K1 and top-k forward KL", "trust": "k1", "outlier": "fkl_direct"} | method
    configuration = {"max_steps": steps, "learning_rate": 5e-6, "output_dir": str(folder)}
    run = {"method": described, "teacher": "large", "configuration": configuration, "versions": {"torch": "2.13.0"}}
    (folder / "run.json").write_text(json.dumps(run))
    measurement = {"k1": 0.4, "trust_fraction": 0.9, "mean_length": 20.0}
    (folder / "preflight.json").write_text(json.dumps({"measurement": measurement, "verdict": None, "findings": []}))
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        regions = {"regions/num_trust": 60.0, "regions/num_outlier": 10.0, "regions/num_guidance": 30.0}
        logged = {"kl/k1": 0.1 * step, "trust/fraction": 0.95, "guidance/prefix_length": 8.0, "grad_norm": 1.0}
        lines.append({"step": step, "loss": 1 / step, **logged, **regions})
        if step in (steps // 2, steps):
            lines.append({"step": step, "eval_loss": 0.3, "eval_kl/k1": 0.8 / step, "eval_trust/fraction": 0.9})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "rollouts").mkdir()
    for record in rollouts:
        with (folder / "rollouts" / f"step-{record['step']:06d}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return folder


def logged_rollouts() -> list[dict[str, Any]]:
    """Of steps 1 and 3: a prefix, trusted tokens, two outliers of different depth, one left out, alternatives."""
    likeliest = [[" 3", -0.01], [HOSTILE, -4.6]]
    first = [
        token("one", "guidance", -0.2),
        token(" plus"),
        token(" 9", "outlier", -7.25, alternatives=likeliest, direct=1.5),
        token("\n", "trust", 0.3),
        token("", "left out", None),
    ]
    second = [token(HOSTILE), token(" 4", "outlier", -2.5, alternatives=likeliest)]
    return [rollout(1, 0, first), rollout(1, 1, [token("fine")], "sort a list"), rollout(3, 0, second, HOSTILE)]
