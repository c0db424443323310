"""The soak benchmark: lines and verdicts by hand, and a short run that measures everything and sees a leak."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from tropd import TrOPDTrainer


@pytest.fixture(scope="module")
def soak():
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "soak.py"
    spec = importlib.util.spec_from_file_location("soak", path)
    module = sys.modules["soak"] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["soak"]


def measured(value) -> list[tuple[int, float]]:
    return [(step, value(step)) for step in range(50, 2050, 50)]


def wave(step: int) -> float:
    return math.sin(step)


def test_the_line_leaves_the_first_quarter_out(soak):
    line = soak.trend(measured(lambda step: 7 + 3e-3 * step if step > 500 else 1000), soak.Quantity("MB", 1.0))
    assert line.slope == pytest.approx(3) and line.error == pytest.approx(0, abs=1e-6)
    assert (line.first, line.last) == (7 + 3e-3 * 550, 13)


def test_the_error_is_that_of_least_squares(soak):
    """Against the textbook's formula, by NumPy."""
    import numpy as np

    points = measured(lambda step: 1e-3 * step + wave(step))[10:]
    steps, values = np.array(points).T
    (slope, _), covariance = np.polyfit(steps / 1000, values, 1, cov=True)
    assert soak._line(points) == pytest.approx((slope, covariance[0, 0] ** 0.5))


@pytest.mark.parametrize(
    ("value", "allowed", "share", "verdict"),
    [
        (lambda step: 5 + 0.9e-3 * step, 1.0, False, "flat"),
        (lambda step: 5 - 9e-3 * step, 1.0, False, "flat"),
        (lambda step: 5 + 1.1e-3 * step, 1.0, False, "grows"),
        (lambda step: 5 + 1.5e-3 * step + wave(step), 1.0, False, "unclear"),
        (lambda step: 100 + 2e-3 * step, 0.03, True, "flat"),
        (lambda step: 100 + 9e-3 * step, 0.03, True, "grows"),
        (lambda step: 1.5 * step, None, False, "grows with the steps"),
        (lambda step: 1e-3 * step**2, None, False, "grows faster than the steps"),
        (wave, None, False, "does not grow"),
    ],
)
def test_verdicts(soak, value, allowed, share, verdict):
    assert soak.trend(measured(value), soak.Quantity("MB", allowed, share)).verdict == verdict


def test_steps_beside_another_load_are_not_compared(soak):
    """Their processor time rises with what the other process takes from the caches."""
    points = [
        dict.fromkeys(soak.QUANTITIES, 1.0) | {"step": step, "step, processor": own, "step, wall clock": wall}
        for step in range(50, 2050, 50)
        for own, wall in [(80.0, 81.0) if step % 100 or step < 1000 else (110.0, 220.0)]
    ]
    found = soak.trends(points)
    assert found["step, processor"].verdict == found["step, wall clock"].verdict == "flat"
    assert found["step, wall clock"].last == 81.0 and len(found) == len(soak.QUANTITIES)


def test_a_short_run_measures_everything(soak, tmp_path, monkeypatch, capsys):
    """Between the steps 1, 11, 21 and 31, whose logged rollouts hold some tensors more."""
    arguments = [
        "--out",
        str(tmp_path),
        "--steps",
        "40",
        "--every",
        "4",
        "--save",
        "4",
    ]  # rollouts of steps 1, 11, 21, 31 are logged
    monkeypatch.setattr(sys, "argv", ["soak.py", *arguments])
    soak.main()
    result = json.loads((tmp_path / "soak.json").read_text())
    assert [point["step"] for point in result["points"]] == list(range(4, 44, 4))
    assert [point["records of log_history"] for point in result["points"]] == list(range(4, 44, 4))
    times = {"step, processor", "step, wall clock"}  # not on a busy machine
    assert set(result["trends"]) | times == set(soak.QUANTITIES), "a quantity was not measured"
    assert all(point[name] > 0 for point in result["points"] for name in times)
    for name in ("live tensors", "open files", "threads", "rest of the checkpoint"):
        assert result["trends"][name]["verdict"] == "flat", name
    assert result["trends"]["trainer_state.json"]["slope"] > 0
    assert capsys.readouterr().out.count("\n| ") == len(result["trends"]) + 1, "and a head"


def test_a_leak_is_seen(soak, tmp_path, monkeypatch):
    step, kept = TrOPDTrainer.training_step, []

    def leaking(self, *args):
        kept.append(torch.zeros(1))
        kept.append((tmp_path / f"{len(kept)}").open("w"))
        return step(self, *args)

    monkeypatch.setattr(TrOPDTrainer, "training_step", leaking)
    found = soak.trends(soak.soak(tmp_path, steps=16, every=2, save=100))
    for file in kept[1::2]:
        file.close()
    assert {name: found[name].verdict for name in ("live tensors", "open files", "threads")} == {
        "live tensors": "grows",
        "open files": "grows",
        "threads": "flat",
    }
    assert found["live tensors"].slope == pytest.approx(1000)
