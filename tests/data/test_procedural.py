"""Tasks of reasoning-gym as prompts, rewards and a benchmark: with a package of its shape, and with itself."""

import json
import os
import subprocess
import sys

import pytest

from data.fake_reasoning_gym import PACKAGE
from tropd.data import load_prompts
from tropd.data.procedural import Spec, _scorer, procedural_records, reasoning_gym_reward, runs_answers, split_of
from tropd.evaluation.benchmarks.grading import Grader, check_gradable
from tropd.evaluation.benchmarks.registry import benchmark, find, load
from tropd.extras import missing_part
from tropd.run.tools import check_reward_columns, reward_function


def forget() -> None:
    _scorer.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "reasoning_gym"]:
        del sys.modules[name]


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The fake in the package's place."""
    folder = tmp_path / "site" / "reasoning_gym"
    folder.mkdir(parents=True)
    for name, text in PACKAGE.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(folder.parent)
    forget()
    yield
    forget()


@pytest.fixture
def real():
    forget()
    pytest.importorskip("reasoning_gym", reason="tropd[gym] is not installed")
    _scorer.cache_clear()


def prompts(source: str, **settings) -> list[dict]:
    return load_prompts(source, **settings).dataset.to_list()


# ---------------------------------------------------------------------- with a package of its shape


def test_rows_ask_and_their_own_answers_are_rewarded(fake):
    data = load_prompts("reasoning_gym:double,odd?size=12")
    rows = data.dataset.to_list()
    assert [row["task"] for row in rows] == ["double"] * 12 + ["odd"] * 12
    assert rows[0]["prompt"].startswith("What is twice ") and rows[0]["prompt"].endswith("<answer> and </answer>.")
    assert data.places[0].startswith("reasoning_gym:double[")
    columns = {name: [row[name] for row in rows] for name in ("task", "entry")}
    told = [f"<think>1</think>So <answer>{row['answer']}</answer>" for row in rows]
    assert reasoning_gym_reward(told, **columns) == [1.0] * 24
    as_messages = [[{"role": "assistant", "content": text}] for text in told]
    assert reasoning_gym_reward(as_messages, prompts=[], **columns) == [1.0] * 24
    check_reward_columns([reward_function("reasoning_gym")], list(rows[0]))


def test_an_item_that_does_not_grade_its_own_reference_is_left_out_and_counted(fake):
    data = load_prompts("reasoning_gym:odd?size=30")
    assert len(data) == 30 and all(int(row["answer"]) // 2 % 3 for row in data.dataset.to_list())
    (note,) = data.notes
    left_out = int(note.split("excluded ")[1].split()[0])
    assert left_out > 5 and note.endswith(
        "does not give the reference answer 1, or gives nonsense at least half a point."
    )


@pytest.mark.parametrize("task", ["blind", "mute"])
def test_a_task_whose_reward_would_mean_nothing_is_refused(fake, task):
    with pytest.raises(
        ValueError, match=f"reasoning_gym:{task} is refused: for none of 8 train items .* a reward would be meaningless"
    ):
        load_prompts(f"reasoning_gym:{task}")


@pytest.mark.parametrize(("task", "by"), [("runs", "eval"), ("runsinside", "parse_expr")])
def test_a_scorer_that_runs_what_a_model_wrote_is_refused(fake, task, by):
    with pytest.raises(ValueError, match=f"its scorer passes the model's answer to {by}, which runs text as Python"):
        load_prompts(f"reasoning_gym:{task}")


def test_a_scorer_that_stumbles_gives_nothing(fake):
    (row,) = prompts("reasoning_gym:stumbles?size=1")  # it evaluates its own reference, which is no model's
    said = [f"<answer>{row['answer']}</answer>", "<answer>twelve</answer>", "", " \n", row["answer"]]
    columns = {name: [row[name]] * len(said) for name in ("task", "entry")}
    assert reasoning_gym_reward(said, **columns) == [1.0, 0.0, 0.0, 0.0, 1.0]


def test_some_of_the_points_are_a_reward(fake):
    (row,) = prompts("reasoning_gym:double?size=1")
    said = f"<answer>{row['answer']} perhaps</answer>"
    assert reasoning_gym_reward([said], task=["double"], entry=[row["entry"]]) == [0.25]


def test_splits_have_no_question_in_common_and_a_seed_has_its_own_items(fake):
    parts = {split: {row["prompt"] for row in prompts("reasoning_gym:double?size=40", split=split)} for split in SPLITS}
    assert [len(part) for part in parts.values()] == [40] * 3
    assert len(set.union(*parts.values())) == 120
    assert {row["prompt"] for row in prompts("reasoning_gym:double?size=40&seed=500")} != parts["train"]
    assert split_of(json.loads(prompts("reasoning_gym:double?size=1", split="test")[0]["entry"])["question"]) == "test"


SPLITS = ("train", "validation", "test")


def test_a_task_with_few_items_says_so(fake):
    data = load_prompts("reasoning_gym:double?size=50&largest=20")
    assert 10 < len(data) <= 20
    assert data.notes == (f"reasoning_gym:double: found {len(data)} different train items instead of 50.",)


def test_a_limit_reads_no_further(fake):
    assert len(load_prompts("reasoning_gym:double", limit=3)) == 3


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("reasoning_gym:doubel", r"reasoning_gym has no task 'doubel' \(did you mean 'double'\?\)"),
        ("reasoning_gym:", "names no task"),
        ("reasoning_gym:double?size=0", "has size 0"),
        ("reasoning_gym:double?seed=x", "has seed 'x'"),
        ("reasoning_gym:double?size", "has the option 'size'; write each option once"),
        ("reasoning_gym:double?size=1&size=2", "has the option 'size=2'; write each option once"),
        ("reasoning_gym:double,odd?largest=3", "has the option 'largest' with 2 tasks"),
        ("reasoning_gym:double?bigest=3", "cannot be generated with .*bigest.* Its options are: largest"),
        ("reasoning_gym:double?largest=0", "largest must be positive"),
    ],
)
def test_what_cannot_be_is_refused(fake, source, what):
    with pytest.raises(ValueError, match=what):
        load_prompts(source)


def test_a_split_that_is_not_there_is_refused(fake):
    with pytest.raises(ValueError, match=r"split is 'dev'; the items of .* are divided into train, validation, test"):
        load_prompts("reasoning_gym:double", split="dev")


def test_a_benchmark_asks_test_items_and_wants_all_points(fake, tmp_path):
    one = benchmark("reasoning_gym:double?size=6")
    check_gradable(one)
    problems = load(one, find(one, tmp_path))
    assert (one.name, one.problems, len(problems)) == ("double", 6, 6)
    asked = {row["prompt"]: row["answer"] for row in prompts("reasoning_gym:double?size=6", split="test")}
    with Grader(one.name) as grader:
        for problem in problems:
            answer = asked[problem.prompt]
            assert grader.grade(problem, f"<answer>{answer}</answer>").outcome == "right"
            assert grader.grade(problem, f"<answer>{answer} perhaps</answer>").details == {"reward": 0.25}
    with pytest.raises(ValueError, match="has 2 tasks; a benchmark has one task"):
        benchmark("reasoning_gym:double,odd")


def test_without_the_package_a_sentence_says_what_to_type(monkeypatch):
    forget()
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        load_prompts("reasoning_gym:leg_counting")
    assert missing_part(caught.value) == 'reasoning_gym is not installed. It comes with: pip install "tropd[gym]"'


def test_an_option_is_read_as_a_value():
    assert Spec.parse("reasoning_gym:a?x=true&y=1.5&z=text&size=3").options == {"x": True, "y": 1.5, "z": "text"}


# ---------------------------------------------------------------------- with the package itself


def test_of_the_package_every_accepted_item_rewards_its_reference(real):
    rows = prompts("reasoning_gym:leg_counting,chain_sum,basic_arithmetic,word_sorting?size=25")
    columns = {name: [row[name] for row in rows] for name in ("task", "entry")}
    assert reasoning_gym_reward([f"<answer>{row['answer']}</answer>" for row in rows], **columns) == [1.0] * 100
    others = [f"<answer>{row['answer']}</answer>" for row in [*rows[1:], rows[0]]]
    assert sum(reward == 1.0 for reward in reasoning_gym_reward(others, **columns)) < 15


@pytest.mark.parametrize("task", ["game_of_life_halting", "graph_color"])
def test_of_the_package_tasks_that_cannot_be_rewarded_are_refused(real, task):
    with pytest.raises(ValueError, match="a reward would be meaningless"):
        load_prompts(f"reasoning_gym:{task}?size=2")


def test_of_the_package_scorers_that_run_answers_are_known(real):
    """Seen by hand in 0.1.25: they call `eval` or sympy's parser on the answer; number_sorting on its own reference."""
    from reasoning_gym.factory import DATASETS

    known = {task for task, (kind, _) in DATASETS.items() if runs_answers(kind)}
    assert known >= {"countdown", "puzzle24", "simple_integration", "spiral_matrix", "string_insertion", "n_queens"}
    assert not known & {"leg_counting", "chain_sum", "number_sorting", "word_sorting"}


def test_of_the_package_another_process_has_the_same_items(real):
    source = "reasoning_gym:leg_counting,word_sorting?size=5&seed=3"
    code = (
        "import sys, json; from tropd.data.procedural import procedural_records; "
        "print(json.dumps([record.values for record in procedural_records(sys.argv[1], 'train')]))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "11"}
    done = subprocess.run(
        [sys.executable, "-c", code, source], env=environment, capture_output=True, text=True, check=True
    )
    ours = [record.values for record in procedural_records(source, "train")]
    assert json.loads(done.stdout.splitlines()[-1]) == ours
