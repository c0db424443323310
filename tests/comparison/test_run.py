"""A comparison from end to end on the real stories model, in its smallest form."""

import json

import pytest
import yaml

from tropd.comparison.run import main

SMALLEST = {
    "keep_layers": [0, 1, 4],
    "num_prompts": {"train": 8, "validation": 4, "test": 4},
    "prompt_tokens": [4, 6],
    "prompt_seed": 1,
    "max_length": 8,
    "prompts_per_step": 2,
    "rollouts_per_prompt": 2,
    "student_tokens": 64,
    "learning_rates": [1.0e-3],
    "grid_seed": 0,
    "seeds": [1, 2],
    "select_on": "student_states/reverse_kl",
    "methods": {"opd": None, "mask_outlier": None, "tropd": {"guidance_beta": 0.01}},
    "trainer": {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "save_strategy": "no"},
}


def test_a_missing_teacher_is_a_sentence_and_exit_code_2(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(SMALLEST))
    code = main(["--recipe", str(recipe), "--teacher", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")])
    assert code == 2
    assert "not a model folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_comparison_runs_resumes_and_publishes_every_cell(tmp_path, stories260k, capfd):
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(yaml.safe_dump(SMALLEST))
    arguments = ["--recipe", str(recipe), "--teacher", str(stories260k), "--out", str(out), "--jobs", "1"]
    assert main(arguments) == 0
    cells = json.loads((out / "results.json").read_text())["cells"]
    assert len(cells) == 3 * (1 + 2)
    assert all(f"| {name} |" in (out / "results.md").read_text() for name in cells if "seed0" not in name)
    assert (out / "curves.png").stat().st_size > 10_000

    kept = out / "cells" / "opd-lr0.001-seed1.json"
    before = json.loads(kept.read_text())
    kept.unlink()
    assert main(arguments) == 0
    assert "9 cells, 9 already done" not in capfd.readouterr().out
    again = json.loads(kept.read_text())
    assert again["test"] == before["test"], "a cell run again is the same cell"
