"""Several teachers from the command line: checked, planned, trained, and asked for responses, each on its own rows."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from .conftest import PROMPTS

NAMES = ("math", "code")
TEACHERS = ("--teacher.math", "teacher", "--teacher.code", "other")


@pytest.fixture(autouse=True)
def _other(workspace):
    """A second teacher, a little off the first; prompts that name the two in turn."""
    other = workspace.copy("teacher", "other")
    tensors = load_file(other / "model.safetensors")
    torch.manual_seed(0)
    tensors = {name: value + 0.02 * torch.randn_like(value) for name, value in tensors.items()}
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    workspace.jsonl("prompts.jsonl", owned())


def owned(*names: object) -> list[dict]:
    """The prompts with the names of their teachers, in turn where none are given."""
    return [
        {"prompt": p, "teacher": names[n] if names else NAMES[n % 2]} for n, p in enumerate(PROMPTS[: len(names) or 8])
    ]


def fields(workspace, **changes):
    return [*workspace.fields(teacher=None, **changes), *TEACHERS]


def test_a_run_names_the_teacher_of_everything(workspace, tropd):
    words = fields(workspace, method="tropd", max_steps=2, preflight_prompts=2, rollout_log_steps=1, rollouts_per_log=8)
    outcome = tropd("train", *words)
    assert outcome.code == 0, outcome.err
    assert "student and teacher 'math' score 2 prompts" in outcome.err
    out = workspace.root / "out"
    owner = {row["prompt"]: row["teacher"] for row in owned()}
    records = [json.loads(line) for path in (out / "rollouts").iterdir() for line in path.read_text().splitlines()]
    assert {record["teacher"] for record in records} == set(NAMES)
    assert all(owner[record["prompt"]] == record["teacher"] for record in records)
    assert json.loads((out / "run.json").read_text())["teacher"] == {"math": "teacher", "code": "other"}
    preflight = json.loads((out / "preflight.json").read_text())
    measured = [preflight["teachers"][name]["measurement"]["k1"] for name in NAMES]
    assert measured[0] != measured[1] and preflight["teachers"]["code"]["verdict"]["kind"]
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert any("teacher/math/k1" in entry for entry in logged) and any("teacher/code/k1" in entry for entry in logged)
    assert "distilled from teacher (math), other (code)" in (out / "README.md").read_text()


def test_a_run_does_not_go_on_with_other_teachers(workspace, tropd):
    saved = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    assert tropd("train", *fields(workspace, **saved)).code == 0
    resumed = fields(workspace, **saved | {"max_steps": 2}, resume_from_checkpoint="latest")
    same = tropd("train", *resumed)
    assert same.code == 0 and "teacher was" not in same.err + same.out
    other = tropd(
        "train",
        *fields(workspace, **saved | {"max_steps": 3}, resume_from_checkpoint="latest"),
        "--teacher.math",
        "other",
    )
    assert other.code == 2
    said = " ".join((other.err + other.out).split())
    assert "teacher was {'math': 'teacher', 'code': 'other'} when the run" in said
    assert "teacher math" in said and "start a new run with the checkpoint as its student" in said


def test_a_check_looks_at_each_pair_and_counts_both_teachers(workspace, tropd):
    words = fields(workspace, output_dir=None, preflight_prompts=2, max_completion_length=72)
    outcome = tropd("check", *words, "--json", "found.json")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("verdict  ") == 2 and "every row names its teacher: math 4, code 4" in outcome.out
    assert "is counted as if it read every row" in " ".join(outcome.out.split())
    assert "time (from measured rates)" in outcome.out
    assert json.loads((workspace.root / "found.json").read_text())["teachers"].keys() == set(NAMES)


def test_yaml_takes_the_mapping_and_columns_name_it(workspace, tropd):
    workspace.jsonl("prompts.jsonl", [{"prompt": row["prompt"], "domain": row["teacher"]} for row in owned()])
    workspace.text("run.yaml", "teacher: {math: teacher, code: other}\ncolumns: {teacher: domain}\n")
    assert tropd("train", "--config", "run.yaml", *workspace.fields(teacher=None)).code == 0


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (owned("math", "maths"), "prompts.jsonl:2: teacher is 'maths', which is not one of the teachers math, code."),
        (owned("math", "code", None), "prompts.jsonl:3: teacher is missing or null; name one of the teachers"),
        ([{"prompt": PROMPTS[0]}], "prompts.jsonl has no column 'teacher'"),
    ],
)
def test_a_row_that_names_no_teacher_is_refused_by_file_and_line(workspace, tropd, rows, said):
    for data in ({"data": "bad.jsonl"}, {"eval_data": "bad.jsonl", "eval_strategy": "steps"}):
        workspace.jsonl("bad.jsonl", rows)
        outcome = tropd("train", *fields(workspace, **data))
        assert outcome.code == 2 and said.replace("prompts", "bad") in " ".join(outcome.err.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--teacher.math", "nowhere"], "teacher.math is 'nowhere'"),
        (["--teacher.math/1", "teacher"], "teacher has the name 'math/1'"),
        (["--teacher_chat_template.art", "teacher"], "teacher_chat_template has 'art', which names no teacher"),
        (["--columns.teacher", "domain", "--teacher", "teacher"], "read only with several teachers"),
    ],
)
def test_mistakes_are_sentences(workspace, tropd, words, said):
    given = [] if "--teacher" in words else TEACHERS[2:] if words[0].startswith("--teacher.") else TEACHERS
    outcome = tropd("train", *workspace.fields(teacher=None), *given, *words)
    assert outcome.code == 2 and said in " ".join(outcome.err.split())


def test_a_teacher_without_rows_and_a_column_without_several_are_said(workspace, tropd):
    outcome = tropd("train", *fields(workspace), "--teacher.art", "teacher")
    assert outcome.code == 0 and "no row names art, which would be loaded without use" in " ".join(outcome.out.split())
    outcome = tropd("train", *workspace.fields(output_dir="one"))
    assert outcome.code == 0 and "has a column 'teacher', which is not read" in " ".join(outcome.out.split())


def test_a_plan_holds_all_teachers(tropd):
    words = ["plan", "--gpus", "1", "--student", "Qwen3-1.7B", "--teacher.math", "Qwen3-4B", "--method", "opd"]
    words += ["--max_completion_length", "1024"]
    alone, both = tropd(*words), tropd(*words, "--teacher.code", "Qwen3-1.7B")
    assert both.code == alone.code == 0, both.err
    assert "teacher  4.02B" in both.out and "teacher  1.72B" in both.out
    assert "the largest of the teachers (math)" in both.out
    assert memory(both.out) == pytest.approx(memory(alone.out) + 2 * 1.72, abs=0.2)


def memory(table: str) -> float:
    """GB of the first row."""
    return next(
        float(line.split(" GB")[0].split()[-1]) for line in table.splitlines() if line.lstrip().startswith("1 ")
    )


def test_each_teacher_answers_its_own_rows_and_training_takes_the_files_together(workspace, tropd):
    for name, folder in zip(NAMES, ("teacher", "other"), strict=True):
        words = ("--data", "prompts.jsonl", "--rows_of", name, "--out", f"{name}.jsonl", "--max_new_tokens", "8")
        assert tropd("generate", "--teacher", folder, *words, "--use_cpu").code == 0
    records = [json.loads(line) for line in (workspace.root / "code.jsonl").read_text().splitlines()]
    assert [record["prompt"] for record in records] == PROMPTS[1::2]
    words = fields(workspace, data=None, method="tropd")
    assert tropd("train", *words, "--data", "math.jsonl", "code.jsonl").code == 0


def test_generate_asks_one_teacher_at_a_time(workspace, tropd):
    words = ("--data", "prompts.jsonl", "--out", "out.jsonl", "--use_cpu", "--max_new_tokens", "4")
    assert "runs one teacher at a time" in tropd("generate", *TEACHERS, *words).err
    assert "teacher is not set" in tropd("generate", *words).err
    unknown = tropd("generate", "--teacher", "teacher", "--rows_of", "art", *words)
    assert "rows_of is 'art', but no row has that name in a teacher column (there: code, math)" in unknown.err
    assert "this teacher answers all rows" in tropd("generate", "--teacher", "teacher", *words).err
