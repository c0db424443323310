"""Every recipe loads and resolves, and the paper's settings hold every value of the paper."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from tropd.comparison.plan_file import load_plan
from tropd.objective.methods import METHODS
from tropd.proving_ground.domains import DOMAINS, records
from tropd.run.configuration import resolve
from tropd.shipped import MODELS, NOT_IN_THE_WHEEL, locate

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
COMPARISONS = [
    RECIPES / "stories260k.yaml",
    RECIPES / "smollm2.yaml",
    RECIPES / "smollm2_endings.yaml",
    RECIPES / "smollm2_support.yaml",
    RECIPES / "smollm2_twelve.yaml",
    *sorted((RECIPES / "proving_ground").glob("*.yaml")),
]
PARTS = [RECIPES / "paper/common.yaml", RECIPES / "baselines/unguided.yaml"]
LAUNCHES = sorted((RECIPES / "accelerate").glob("*.yaml"))
RUNS = [path for path in sorted(RECIPES.rglob("*.yaml")) if path not in (*COMPARISONS, *PARTS, *LAUNCHES)]
ON_CPU = {"use_cpu": True, "bf16": False}


def by_name(path: Path) -> str:
    return path.relative_to(RECIPES).as_posix()


def resolved(path: Path):
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    missing = [] if "teacher" in written or "extends" in written else ["--teacher", "named/on_the_command_line"]
    return resolve(path, missing)


@pytest.mark.parametrize("path", RUNS, ids=by_name)
def test_a_recipe_resolves_to_a_method_and_training_arguments(path):
    configuration = resolved(path)
    configuration.trainer.update(ON_CPU)
    args = configuration.training_arguments()
    assert args.resolved_method().name in METHODS
    assert args.output_dir.startswith("runs/")


@pytest.mark.parametrize("path", RUNS, ids=by_name)
def test_a_recipe_says_what_it_shows_costs_and_expects(path):
    text = path.read_text(encoding="utf-8")
    told = ("# Expects",) if path.parent.name in ("baselines", "ablations") else ("# Shows:", "# Costs:", "# Expects:")
    assert all(word in text for word in told)


COMMENTED = [*sorted(RECIPES.rglob("*.yaml")), RECIPES / "verl/tropd.sh"]


@pytest.mark.parametrize("path", COMMENTED, ids=by_name)
def test_what_a_recipe_says_holds_where_there_is_no_checkout(path):
    """Its commands name recipes and shipped models as an installed package has them."""
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])(recipes|src|tools|tests|benchmarks|docs/assets)/", text)
    for name in re.findall(r"recipe:([\w/.]*\w)", text) + re.findall(r"--path ([\w/]+)", text):
        assert Path(locate(f"recipe:{name}")).is_file()


@pytest.mark.parametrize("path", COMPARISONS, ids=by_name)
def test_a_comparison_loads(path):
    assert load_plan(path, teacher="named/on_the_command_line").methods


@pytest.mark.parametrize("name", ["setting1_math", "setting2_multidomain", "setting3_multidomain_qwen3"])
def test_a_setting_of_the_paper_holds_every_published_value(name):
    configuration = resolved(RECIPES / "paper" / f"{name}.yaml")
    configuration.trainer.update(ON_CPU)
    args = configuration.training_arguments()
    method = args.resolved_method()
    assert (args.max_steps, args.learning_rate, args.lr_scheduler_type) == (200, 5e-6, "constant")
    assert (args.temperature, args.top_p, args.warmup_steps) == (1.0, 1.0, 0)
    assert (args.weight_decay, args.max_grad_norm, args.max_completion_length) == (0.1, 1.0, 8192)
    assert (method.name, method.gate, method.outlier) == ("tropd", "bernoulli", "fkl_direct")
    assert (method.fkl_top_k, method.guidance_beta, method.guidance_schedule) == (64, 0.001, "cosine")
    assert (method.guidance_length, method.reduction) == ("cap", "shared")
    processes = yaml.safe_load((RECIPES / "accelerate/fsdp2_8gpu.yaml").read_text())["num_processes"]
    sequences = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    assert (sequences, args.num_generations) == (128 * 4, 4)


def test_every_method_has_a_recipe():
    shown = {resolved(path).trainer.get("method", "tropd") for path in RUNS}
    assert shown == set(METHODS)


@pytest.mark.parametrize("path", sorted((RECIPES / "baselines").glob("*.yaml")), ids=by_name)
def test_a_baseline_keeps_its_published_parts(path):
    if path in PARTS:
        pytest.skip("a part of the others")
    configuration = resolved(path)
    configuration.trainer.update(ON_CPU)
    assert configuration.training_arguments().resolved_method() == METHODS[path.stem]


def test_several_machines_take_the_step_of_one():
    def sequences(run: str, launch: str) -> int:
        trainer = resolved(RECIPES / run).trainer
        processes = yaml.safe_load((RECIPES / "accelerate" / launch).read_text())["num_processes"]
        return trainer["per_device_train_batch_size"] * trainer["gradient_accumulation_steps"] * processes

    assert sequences("multi_node.yaml", "multi_node.yaml") == sequences("fsdp2_8gpu.yaml", "fsdp2_8gpu.yaml")


@pytest.mark.parametrize("path", LAUNCHES, ids=by_name)
def test_accelerate_knows_every_key_of_a_launch_file(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes % config.num_machines == 0


def test_the_problems_of_the_benchmark_are_those_of_the_generator():
    problems = [{"prompt": row["prompt"], "domain": row["domain"]} for row in records("mathematics", "test", 64, 0, 2)]
    lines = (RECIPES / "data/sums.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == problems


def test_the_prompts_of_the_demo_are_those_of_the_generator():
    columns = [records(domain, "train", 171, seed=0, level=2) for domain in DOMAINS]
    prompts = [row["prompt"] for rows in zip(*columns, strict=True) for row in rows][:512]
    lines = (RECIPES / "data/problems.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == prompts


def test_a_recipe_is_found_by_name_wherever_one_stands(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolve("recipe:lora_one_gpu").trainer == resolve(RECIPES / "lora_one_gpu.yaml").trainer
    assert load_plan("recipe:proving_ground/demo") == load_plan(RECIPES / "proving_ground/demo.yaml")
    settings = resolve("recipe:demo").settings
    assert (Path(settings.student) / "model.safetensors").is_file() and Path(settings.data).is_file()
    own = tmp_path / "own.yaml"
    own.write_text("extends: recipe:paper/setting1_math\nmax_steps: 3\n")
    assert resolve(own).trainer == {**resolve("recipe:paper/setting1_math").trainer, "max_steps": 3}


def test_a_model_that_the_package_leaves_out_says_where_it_is(monkeypatch, tmp_path):
    family = tmp_path / "family" / "student"
    family.mkdir(parents=True)
    (family / "model.safetensors").touch()
    assert Path(locate("shipped:storeroom-student")) == MODELS / "storeroom" / "student"
    monkeypatch.setattr("tropd.shipped.MODELS", tmp_path)
    assert Path(locate("shipped:student")) == family
    with pytest.raises(
        ValueError, match=r"student is .*it has student\. To keep .* that model is only in tropd's repository"
    ):
        resolve("recipe:storeroom")
    with pytest.raises(ValueError, match=r"'shipped:pupil', which is not in this installation .* it has student\.$"):
        locate("shipped:pupil")


def test_the_models_that_the_wheel_leaves_out_are_those_that_have_the_sentence():
    written = tomllib.loads((RECIPES.parent / "pyproject.toml").read_text(encoding="utf-8"))
    excluded = written["tool"]["hatch"]["build"]["targets"]["wheel"]["exclude"]
    found = [path for one in excluded for path in RECIPES.parent.glob(f"{one[1:]}/model.safetensors")]
    left_out = {path.parent.name for path in found}
    assert {name for name in NOT_IN_THE_WHEEL if "*" not in name} == left_out
    assert "/src/tropd/proving_ground/models/storeroom" in excluded


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("recipe:lora_one_gpus", "is 'recipe:lora_one_gpus', which is not a recipe. Did you mean 'lora_one_gpu'?"),
        ("recipe:../pyproject", "which is not a recipe. `tropd recipes` lists them."),
        ("recipe:../pyproject.toml", "which is not a recipe."),
        ("shipped:teacher", "is 'shipped:teacher', which is not in this installation of tropd; it has generalist"),
    ],
)
def test_what_did_not_come_with_the_package_is_refused(written, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        resolve(None, ["--student", "a", "--teacher", written, "--data", "c", "--output_dir", "out"])
    assert str(caught.value).startswith("teacher is ")
