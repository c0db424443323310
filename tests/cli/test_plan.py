"""`tropd plan`: a table for GPUs that are not here."""

from pathlib import Path


def test_a_plan_needs_neither_models_nor_data(tropd):
    fields = {"student": "Llama-3.1-8B", "teacher": "Llama-3.1-70B", "gpu": "h200", "sequences_per_step": 512}
    fields |= {"per_device_train_batch_size": 4, "max_completion_length": 8192, "max_steps": 200}
    words = [word for name, value in fields.items() for word in (f"--{name}", str(value))]
    outcome = tropd("plan", "--gpus", "8", "64", *words, "--response_tokens", "5000")
    assert outcome.code == 0, outcome.err
    assert "student  8.03B" in outcome.out and "teacher  70.55B" in outcome.out
    rows = [line.split() for line in outcome.out.splitlines() if line.lstrip().startswith(("8 ", "64 "))]
    assert [row[1] for row in rows] == ["no", "FSDP2", "no", "FSDP2"]
    assert "nothing here was measured on a GPU" in outcome.out


def test_a_recipe_of_the_paper_can_be_planned_without_its_models(tropd):
    recipe = Path(__file__).resolve().parents[2] / "recipes/paper/setting3_multidomain_qwen3.yaml"
    outcome = tropd("plan", "--config", str(recipe), "--sequences_per_step", "512", "--gpus", "8")
    assert outcome.code == 0, outcome.err
    assert "512 sequences" in outcome.out and "vLLM     takes 30%" in outcome.out


def test_a_gpu_that_is_not_known_is_refused(tropd):
    outcome = tropd("plan", "--student", "Qwen3-4B", "--teacher", "Qwen3-4B", "--gpu", "h1000")
    assert outcome.code == 2 and "--gpu is 'h1000'; known: h100" in outcome.err
