"""`benchmarks/gpu_engines.py` in tiny sizes on a CPU: every phase runs, and says what it has to."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm"),
]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    kept = tmp_path_factory.mktemp("measured") / "tiny.json"
    command = [sys.executable, "benchmarks/gpu_engines.py", "--tiny", "--minutes", "25", "--json", str(kept)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}/src", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:] + kept.read_text()
    return json.loads(kept.read_text())


def test_every_phase_is_done_and_every_ratio_is_there(record):
    assert {name: one["status"] for name, one in record["phases"].items()} == dict.fromkeys(record["phases"], "done")
    assert len(record["phases"]) == 8 and all(ratio > 0 for ratio in record["ratios"].values())
    for name in ("opd, step, vLLM ÷ own", "tropd, rollout, vLLM ÷ own", "head, tropd, fused ÷ trl", "step, gkd ÷ TRL"):
        assert name in record["ratios"]
    assert record["commit"] and record["versions"]["trl"] and record["hardware"]


def test_the_engines_weights_follow_and_a_guided_row_asks_for_what_its_prefix_leaves(record):
    rows, response = record["sizes"]["rows"], record["sizes"]["response"]
    for method in ("opd", "tropd"):
        found = record["phases"][f"vllm {method}"]["figures"]
        assert found["engine"]["mode"] == "colocate" and found["engine"]["dtype"] == "float32"
        assert len(found["steps"]) == record["sizes"]["steps"]
        for one in found["steps"]:
            prefix = one.get("guidance/prefix_length", 0)
            assert one["asked"] == one["written"] == one["tokens"] == rows * (response - prefix)
            assert one["sampler/logp_gap"] < 1e-3
    guided = record["phases"]["vllm tropd"]["figures"]["steps"]
    assert all(0 < one["guidance/prefix_length"] < response for one in guided)
