"""Rollouts by a real vLLM in the trainer's process, on a CPU. `make test-vllm` builds the environment and runs it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tropd.rollout.engine.vllm_release import installed_release

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm"),
]
ROOT = Path(__file__).parents[2]
STEPS, BUDGET = 3, 24
_, RELEASE = installed_release() or ("", "")


def run(folder: Path, worker: str = "worker.py", **settings) -> dict:
    """What a run of a worker saw; its output must be free of tracebacks."""
    folder.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(worker)), str(folder), json.dumps(settings)],
        capture_output=True,
        check=False,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}/src:{ROOT}:{ROOT}/tests"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return json.loads((folder / "seen.json").read_text())


def steps_of(seen: dict) -> list[dict]:
    return [entry for entry in seen["logs"] if "loss" in entry]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    made = {}

    def of(name, **settings):
        if name not in made:
            made[name] = run(tmp_path_factory.mktemp("vllm") / name, **settings)
        return made[name]

    return of


METHODS = ("tropd", "opd", "tropd_share", "gkd")


@pytest.mark.parametrize("method", METHODS)
def test_weights_follow_and_numbers_agree(runs, method):
    """At a rate of 1e-3 an engine with stale weights would be 0.2 nats away by the third step."""
    seen = runs(method, method=method)
    assert seen["failure"] is None
    assert seen["engine"] == {"name": "vllm", "mode": "colocate", "version": RELEASE, "dtype": "float32"}
    assert [step["rollout/engine"] for step in steps_of(seen)] == [2.0] * STEPS
    assert all(step["sampler/logp_gap"] < 1e-3 for step in steps_of(seen))


def test_an_adapter_follows_too(runs):
    seen = runs("lora", method="opd", lora=True)
    assert seen["failure"] is None and all(step["sampler/logp_gap"] < 1e-3 for step in steps_of(seen))


def test_what_is_asked_is_what_the_prefix_leaves_and_what_is_written_stays_in_it(runs):
    seen = runs("tropd", method="tropd")
    prefixes = [round(step["guidance/prefix_length"]) for step in steps_of(seen)]
    assert prefixes == [BUDGET - 1, 18, 6]
    for batch, prefix in zip(seen["asked"][-STEPS:], prefixes, strict=True):
        assert {row["max_tokens"] for row in batch} == {BUDGET - prefix}
        assert all(1 <= len(row["written"]) <= row["max_tokens"] for row in batch)


def test_draws_belong_to_the_row_and_not_to_the_run_before_it(runs):
    first, second = runs("opd", method="opd"), runs("again", method="opd")
    other = runs("other", method="opd", seed=7)
    assert first["asked"] == second["asked"]
    assert first["asked"] != other["asked"]
    assert all(len({tuple(row["written"]) for row in batch}) > 4 for batch in first["asked"])


def test_a_half_precision_run_has_a_half_precision_engine(runs):
    seen = runs("half", method="opd", bf16=True)
    assert seen["engine"]["dtype"] == "bfloat16"
    assert max(step["sampler/logp_gap"] for step in steps_of(seen)) < 0.2


def test_an_engine_that_dies_is_a_sentence(runs):
    seen = runs("dies", method="opd", die_in=2)
    assert seen["failure"].startswith("EngineFailed: vLLM failed in step 2 (RuntimeError: EngineCore encountered")
