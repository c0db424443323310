"""The published files load as they are, and their overlaps are those that were counted before, by other code."""

import pytest

from tropd.data import find_duplicates, find_overlap, load_prompts


@pytest.fixture(scope="module")
def dapo(data_dir):
    return load_prompts(data_dir / "dapo_math_17k/dapo-math-17k.parquet")


@pytest.mark.parametrize(
    ("file", "column", "rows", "last"),
    [
        ("gsm8k/train.jsonl", "question", 7473, ":7473"),
        ("gsm8k/test.jsonl", "question", 1319, ":1319"),
        ("math/test.json", "problem", 5000, ":5000"),
        ("math/train_rllm.json", "problem", 7474, " (row 7474)"),
        ("math500/test.jsonl", "problem", 500, ":500"),
        ("aime24/test.jsonl", "problem", 30, ":30"),
        ("aime25/test2025-I.jsonl", "problem", 15, ":15"),
        ("aime25/test2025-II.jsonl", "problem", 15, ":15"),
        ("amc23/test.jsonl", "problem", 40, ":40"),
        ("humaneval/HumanEval.jsonl.gz", "prompt", 164, ":164"),
        ("mbpp/mbpp.jsonl", "text", 974, ":974"),
        ("livecodebench/problems.jsonl", "question_content", 342, ":342"),
        ("ifeval/input_data.jsonl", "prompt", 541, ":541"),
        ("ifbench/IFBench_test.jsonl", "prompt", 300, ":300"),
    ],
)
def test_a_published_file_loads(data_dir, file, column, rows, last):
    data = load_prompts(data_dir / file, columns={"prompt": column}, chat=True)
    assert (len(data) == rows and data.places[-1] == f"{data_dir / file}{last}") or last.startswith(" (")
    assert data.places[-1].endswith(last) and not data.notes


def test_a_row_of_an_array_stands_at_its_line(data_dir):
    file = data_dir / "math/train_rllm.json"
    data = load_prompts(file, columns={"prompt": "problem"})
    line = int(data.places[-1].rpartition(":")[2].split()[0])
    assert file.read_text(encoding="utf-8").split("\n")[line - 1].strip() == "{"


def test_columns_that_arrow_cannot_hold_are_said(data_dir):
    data = load_prompts(data_dir / "humaneval_plus/HumanEvalPlus.jsonl.gz")
    assert [note.split("'")[1] for note in data.notes] == ["base_input", "plus_input"]
    assert "test" in data.dataset.column_names


def test_dapo_repeats_prompts(dapo):
    found = find_duplicates(dapo)
    assert (len(dapo), found.different) == (17917, 16305)


def test_dapo_holds_evaluation_problems(dapo, data_dir):
    files = ["math/test.json", "math500/test.jsonl", "amc23/test.jsonl", "aime24/test.jsonl"]
    aime25 = [data_dir / "aime25/test2025-I.jsonl", data_dir / "aime25/test2025-II.jsonl"]
    found = find_overlap(dapo, [*(data_dir / file for file in files), aime25])
    assert [overlap.evaluation_problems for overlap in found] == [5000, 500, 40, 30, 30]
    assert [overlap.problems for overlap in found] == [976, 7, 8, 0, 0]
    assert [overlap.word_for_word for overlap in found] == [972, 4, 6, 0, 0]
    assert [overlap.rows for overlap in found] == [1034, 8, 11, 0, 0]


def test_two_problems_of_math_are_in_train_and_test_word_for_word(data_dir):
    train = load_prompts(data_dir / "math/train_rllm.json", columns={"prompt": "problem"})
    test, math500 = find_overlap(train, [data_dir / "math/test.json", data_dir / "math500/test.jsonl"])
    assert (test.problems, test.word_for_word, test.rows) == (10, 2, 9)
    assert math500.problems == 0
