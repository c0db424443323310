"""A real cell, small: the shipped pair, a few steps, in this process."""

import json
import subprocess

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tools.proving_ground.tokenizer import build_tokenizer
from tropd.comparison.cell.environment import commit
from tropd.comparison.cell.prepare import prepare, read_setting
from tropd.comparison.cell.run_cell import run_cell
from tropd.comparison.cell.texts import make_texts
from tropd.comparison.cells import Cell
from tropd.comparison.plan_file import read_plan

SMALL = {
    "student_tokens": 400,
    "seeds": [1],
    "learning_rates": [1.0e-3],
    "prompts": {"train": 16, "validation": 2, "test": 3},
    "max_length": 20,
    "points": 2,
    "point_prompts": 2,
    "divergence_prompts": 2,
    "trainer": {"rollout_log_steps": 1, "rollouts_per_log": 8},
}


def prompts_by_step(folder):
    files = sorted(folder.glob("rollouts/*.jsonl"))
    return [[json.loads(line)["prompt"] for line in file.read_text().splitlines()] for file in files]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def small(whole_plan):
    return whole_plan | SMALL


@pytest.fixture(scope="module")
def cells(tmp_path_factory, small):
    """Folder and result of a cell of OPD and of TrOPD."""
    root = tmp_path_factory.mktemp("cells")
    plan = read_plan(small)
    prepare(plan, "one", root / "setting")
    return {
        label: (root / label, run_cell(plan, Cell("one", label, 1e-3, 1, "report"), root / "setting", root / label))
        for label in ("opd", "tropd")
    }


def test_all_methods_see_the_same_prompts_in_the_same_order(cells):
    unguided, guided = (prompts_by_step(cells[label][0]) for label in ("opd", "tropd"))
    assert len(guided) > len(unguided) >= 4
    assert guided[: len(unguided)] == unguided and unguided[0] != unguided[1]


def test_the_student_writes_the_same_number_of_tokens(cells):
    opd, tropd = (cells[label][1] for label in ("opd", "tropd"))
    assert opd["student_tokens"] == pytest.approx(400, abs=45), "half a step is the most that may be missing"
    assert tropd["student_tokens"] == pytest.approx(400, abs=45)
    assert tropd["prefix_tokens"] > 0 == opd["prefix_tokens"]


def test_a_cell_is_measured_on_test_problems_and_followed_on_validation_problems(cells):
    result = cells["opd"][1]
    assert result["failure"] is None and result["error"] is None
    assert len(result["right"]["mathematics"]) == 3
    assert {"accuracy", "student_states/reverse_kl"} <= set(result["scores"])
    assert result["points"][0]["step"] == 0 and len(result["points"]) == 3
    assert result["points"][-1]["student_tokens"] <= result["student_tokens"]


def test_a_run_is_not_disturbed_by_the_points_at_which_it_is_measured(cells, small, tmp_path):
    folder, measured = cells["opd"]
    plan = read_plan(small | {"points": 0})
    unmeasured = run_cell(plan, Cell("one", "opd", 1e-3, 1, "report"), folder.parent / "setting", tmp_path / "cell")
    assert unmeasured["scores"] == measured["scores"] and unmeasured["points"] == []


@pytest.fixture
def models(tmp_path):
    """A random student and two random teachers with the tokenizer of the three domains."""
    tokenizer = build_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    for number, name in enumerate(("student", "a", "b")):
        torch.manual_seed(number)
        Qwen3ForCausalLM(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("method", ["tropd", "gkd"])
def test_several_teachers_each_teach_their_domain(models, plan_data, method):
    setting = {
        "domains": ["mathematics", "code"],
        "student": str(models / "student"),
        "teachers": {"mathematics": str(models / "a"), "code": str(models / "b")},
    }
    changes = {"settings": {"one": setting}, "methods": {"opd": None, method: None}, "student_tokens": 80, "points": 0}
    plan = read_plan(plan_data | SMALL | changes)
    prepare(plan, "one", models / "setting")
    texts, before = read_setting(models / "setting")
    assert [text.part for text in texts["train"][:4]] == ["mathematics", "code", "mathematics", "code"]
    assert before["teacher"]["student_states/reverse_kl/code"] == pytest.approx(0.0, abs=1e-6)
    result = run_cell(plan, Cell("one", method, 1e-3, 1, "report"), models / "setting", models / "cell")
    logged = [json.loads(line) for line in (models / "cell/metrics.jsonl").read_text().splitlines()]
    assert all(any(f"teacher/{part}/num_tokens" in line for line in logged) for part in ("mathematics", "code"))
    mean = sum(result["scores"][f"student_states/reverse_kl/{part}"] for part in ("mathematics", "code")) / 2
    assert result["scores"]["student_states/reverse_kl"] == pytest.approx(mean)


def test_prompts_from_files_bring_their_responses_or_get_the_teachers(tmp_path, plan_data):
    for split in ("train", "validation", "test"):
        first = {"train": 1, "validation": 4, "test": 7}[split]
        rows = [
            {"prompt": f"{n}+1+2=", "teacher_response": "ones:1" if split == "train" else None}
            for n in range(first, first + 3)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation", "test")}
    plan_data["settings"]["one"] |= {"domains": [], "data": files}
    plan = read_plan(plan_data | {"prompts": {"train": 3, "validation": 2, "test": 2}})
    texts = make_texts(plan.settings["one"], plan, tmp_path)
    assert [len(texts[split]) for split in ("train", "validation", "test")] == [3, 2, 2]
    assert len({tuple(text.response_ids) for text in texts["train"]}) == 1 and len(texts["train"][0].response_ids) == 4
    assert all(text.response_ids for text in texts["test"])
    too_many = {"train": 3, "validation": 2, "test": 9}
    with pytest.raises(ValueError, match=r"prompts.test is 9, but .*test.jsonl has 3"):
        make_texts(plan.settings["one"], read_plan(plan_data | {"prompts": too_many}), tmp_path)
    shared = (tmp_path / "train.jsonl").read_text().splitlines()[1]
    (tmp_path / "test.jsonl").write_text(f"{shared}\n{shared}\n")
    with pytest.raises(ValueError, match=r"test.jsonl has the prompt '2\+1\+2=', which .*train.jsonl has too"):
        make_texts(plan.settings["one"], plan, tmp_path)


@pytest.mark.parametrize(("max_length", "ended"), [(2, 0.0), (60, 1.0)])
def test_responses_that_nothing_grades_are_counted_as_they_end(tmp_path, small, max_length, ended):
    for split, first in {"train": 1, "validation": 4, "test": 7}.items():
        rows = [{"prompt": f"{n}+1+2="} for n in range(first, first + 2)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation", "test")}
    setting = small["settings"]["one"] | {"domains": [], "data": files}
    prompts = {"train": 2, "validation": 2, "test": 2}
    sizes = {"max_length": max_length, "prompts": prompts, "select_on": "student_states/reverse_kl", "points": 0}
    plan = read_plan(small | sizes | {"settings": {"one": setting}})
    prepare(plan, "one", tmp_path / "setting")
    _, before = read_setting(tmp_path / "setting")
    assert before["teacher"]["ended"] == ended
    assert before["teacher"]["length"] == 2.0 if max_length == 2 else 2.0 < before["teacher"]["length"] < 60
    result = run_cell(plan, Cell("one", "opd", 1e-3, 1, "report"), tmp_path / "setting", tmp_path / "cell")
    assert {"ended", "length"} <= set(result["scores"]) and result["right"] == {}


def test_a_teacher_may_end_with_another_id_and_the_run_takes_both_as_one_action(small, tmp_path):
    methods = {"opd": None, "as given": {"method": "opd", "ending": "as_given"}}
    small = small | {"methods": methods, "points": 0, "learning_rates": [1e-6]}  # the models stay what they are
    folders = {token: tmp_path / (token or "alike") for token in ("", "<unk>")}
    found = {}
    for token, folder in folders.items():
        setting = small["settings"]["one"] | {"teacher_ending": token}
        plan = read_plan(small | {"settings": {"one": setting}})
        prepare(plan, "one", folder)
        texts, found[token, "before"] = read_setting(folder)
        last = {text.response_ids[-1] for text in texts["train"] if len(text.response_ids) < plan.max_length}
        assert last <= {3 if token else 2}, "its responses end with its own id"
        for label in methods:
            cell = Cell("one", label, 1e-6, 1, "report")
            found[token, label] = run_cell(plan, cell, folder, folder / label)["scores"]
    assert found["<unk>", "before"]["student"] == pytest.approx(found["", "before"]["student"], rel=1e-3)
    assert found["<unk>", "before"]["teacher"] == pytest.approx(found["", "before"]["teacher"], abs=1e-5)
    assert found["<unk>", "opd"] == pytest.approx(found["", "opd"], rel=0.02), "as if the endings were alike"

    def first(folder, label, name):
        return json.loads((folder / label / "metrics.jsonl").read_text().splitlines()[0]).get(name)

    outliers = "log_ratio/ending_outlier_share"
    if first(folders["<unk>"], "opd", outliers) is not None:
        assert first(folders["<unk>"], "opd", outliers) < 1 == first(folders["<unk>"], "as given", outliers)
    ended = [json.loads((folders["<unk>"] / label / "run.json").read_text())["endings"] for label in methods]
    assert [(end["stop_ids"], end["one_action"]) for end in ended] == [([2, 3], True), ([2], False)]


def test_the_commit_of_a_run_is_marked_where_tracked_files_differ(tmp_path):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True)

    git("init")
    assert commit(tmp_path) is None
    (tmp_path / "__init__.py").write_text("")
    git("add", ".")
    git("commit", "-m", "one")
    (tmp_path / "notes.txt").write_text("untracked")
    clean = commit(tmp_path)
    assert len(clean) == 10
    (tmp_path / "__init__.py").write_text("changed = True\n")
    assert commit(tmp_path) == f"{clean}+"
