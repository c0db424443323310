"""The recipe of the story model through the real command, in its smallest form: killed, gone on with, published."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tropd.comparison.layout import RESULT

RECIPE = Path(__file__).parents[2] / "recipes" / "stories260k.yaml"
SMALLEST = {
    "methods": {"opd": None, "tropd": {"guidance_beta": 0.01}},
    "prompts": {"train": 8, "validation": 4, "test": 4},
    "max_length": 8,
    "prompts_per_step": 2,
    "rollouts_per_prompt": 2,
    "student_tokens": 64,
    "learning_rates": [1.0e-3],
    "seeds": [1, 2],
}


@pytest.mark.slow
def test_a_killed_comparison_of_real_models_ends_with_every_cell(tmp_path, stories260k):
    plan, out = tmp_path / "plan.yaml", tmp_path / "out"
    plan.write_text(yaml.safe_dump(yaml.safe_load(RECIPE.read_text()) | SMALLEST))
    command = [sys.executable, "-m", "tropd", "compare", plan, "--teacher", stories260k, "--out", out, "--jobs", "1"]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (done := list(out.glob(f"cells/*/{RESULT}"))):
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.2)
    running.send_signal(signal.SIGKILL)
    running.wait()
    first, before = done[0], done[0].stat().st_mtime_ns
    subprocess.run(command, check=True, timeout=600)
    assert first.stat().st_mtime_ns == before
    results = json.loads((out / "results.json").read_text())
    assert len(results["cells"]) == 4 and not any(cell["error"] for cell in results["cells"].values())
    assert results["settings"]["stories"]["methods"]["tropd"]["seeds"] == [1, 2]
    assert (out / "settings/stories/student/model.safetensors").is_file()
    assert "| tropd |" in (out / "tables.md").read_text() and "<figure>" in (out / "report.html").read_text()
