"""`eval_benchmarks` from the command line: the example recipe on the shipped pair, beside `tropd evaluate`."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["--max_steps", "2", "--eval_steps", "1", "--save_steps", "1", "--preflight_prompts", "0"]


def test_the_recipe_keeps_the_best_model_and_measures_what_evaluate_does(tmp_path, monkeypatch, tropd):
    monkeypatch.chdir(ROOT)
    run, few = tmp_path / "run", ["--eval_benchmarks_max_problems", "16", "--per_device_eval_batch_size", "4"]
    outcome = tropd("train", "--config", "recipes/benchmarks.yaml", "--output_dir", str(run), *SHORT, *few)
    assert outcome.code == 0, outcome.err
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    name = "eval_benchmark/sums/accuracy"
    accuracies = {line["step"]: line[name] for line in lines if name in line}
    assert list(accuracies) == [0, 1, 2]
    assert f"step 0: sums {accuracies[0]:.1%} right" in outcome.err
    best = max((1, 2), key=lambda step: (accuracies[step], -step))  # a step 0 has no checkpoint
    card = (run / "README.md").read_text()
    if accuracies[0] < accuracies[best]:
        assert f"| {best} (the best of 2 by {name}) |" in card
    kept = best if accuracies[0] < accuracies[best] else 2
    assert f"| sums | {accuracies[kept]:.1%} | {accuracies[0]:.1%} |".replace("%", "") in card
    asked = ["src/tropd/proving_ground/models/family/student", "--benchmarks"]
    asked += [
        "recipes/data/sums.jsonl@tropd.proving_ground.domains:reward",
        "--data",
        ".",
        "--out",
        str(tmp_path / "e"),
    ]
    asked += ["--max_problems", "16", "--temperature", "0", "--max_new_tokens", "96", "--batch_size", "16"]
    outcome = tropd("evaluate", *asked, "--use_cpu")
    assert outcome.code == 0, outcome.err
    assert json.loads((tmp_path / "e/scores.json").read_text())["sums"]["accuracy"] == accuracies[0]
    assert 0 < accuracies[0] < 1


def test_benchmarks_that_are_not_found_are_refused_before_weights_are_read(workspace, tropd):
    fields = workspace.fields(eval_benchmarks="gsm8k", eval_benchmarks_data="here", eval_strategy="steps", eval_steps=1)
    outcome = tropd("train", *fields)
    assert outcome.code == 2 and "GSM8K needs here/gsm8k/test.jsonl, which is missing" in outcome.err
    assert "loading student" not in outcome.err
