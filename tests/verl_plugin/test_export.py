"""`tropd export --to verl`, without verl: the rows, their order and their prefixes."""

import json

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from shipped import student_path
from tropd.cli.main import main
from tropd.objective import get_method, guidance_fraction, prefix_length
from tropd.verl.losses import row_number
from tropd.verl.rows import Order, Prompt, training_rows, validation_rows

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture
def student(tmp_path):
    """The shipped student, with a chat template."""
    import shutil

    folder = shutil.copytree(student_path(), tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def export(tmp_path, student):
    """The command on eight prompts, whose teacher responses are four to eleven tokens long."""
    rows = [{"prompt": f"{n}+1=", "teacher_response": [5] * (4 + n), "sum": n + 1} for n in range(8)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*words: str) -> int:
        start = ["export", "--to", "verl", "--student", str(student), "--data", str(tmp_path / "data.jsonl")]
        return main([*start, "--out", str(tmp_path / "out.parquet"), *words])

    return run


STEPS = ("--chat", "--batch_size", "3", "--epochs", "2", "--max_response_length", "8")


def test_rows_are_written_in_the_order_of_training_with_the_prefix_of_their_step(export, tmp_path, capfd):
    assert export(*STEPS, "--answer_column", "sum") == 0
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert len(rows) == 15  # 16 rows fill five steps of three
    assert [row["extra_info"]["tropd_step"] for row in rows] == [1 + place // 3 for place in range(15)]
    numbers = [row["extra_info"]["index"] for row in rows]
    assert sorted(numbers[:8]) == list(range(8)) and numbers[:8] != numbers[8:]
    for place, row in enumerate(rows):
        number = row["extra_info"]["index"]
        assert row["prompt"] == [{"role": "user", "content": f"{number}+1="}]
        assert row["reward_model"]["ground_truth"] == str(number + 1)
        fraction = guidance_fraction("cosine", place // 3, 5)
        length = prefix_length("cap", fraction, response_length=4 + number, max_length=8)
        assert row["extra_info"]["tropd_prefix_ids"] == [5] * length
    said = capfd.readouterr().out
    assert "steps        5 of 3 prompts" in said and "β = 0" in said
    assert "data.train_batch_size=3 data.shuffle=False" in said and "default_agent_loop=tropd_prefix" in said


def test_a_method_without_guidance_needs_no_responses_and_no_agent_loop(export, tmp_path, capfd):
    assert export(*STEPS, "--method", "fkl_outlier") == 0
    assert not any(row["extra_info"]["tropd_prefix_ids"] for row in pq.read_table(tmp_path / "out.parquet").to_pylist())
    assert "tropd_prefix" not in capfd.readouterr().out


def test_validation_has_each_prompt_once_and_no_prefix(export, tmp_path):
    assert export("--chat", "--validation") == 0
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["extra_info"]["index"] for row in rows] == list(range(8))
    assert not any(row["extra_info"]["tropd_prefix_ids"] for row in rows)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (STEPS[1:], "the prompt is text, but verl applies the chat template to every prompt. Add --chat"),
        ((*STEPS, "--method", "gkd"), "cannot run in verl: it reads the teacher's whole distribution"),
        ((*STEPS, "--max_prompt_length", "2"), "but max_prompt_length is 2. verl would skip the row"),
        ((*STEPS, "--batch_size", "99"), "do not fill one step of 99"),
        (("--chat", "--batch_size", "3"), "max_response_length is not set"),
        ((*STEPS, "--columns.teacher_response", "none_such"), "none_such"),
        ((*STEPS, "--out", "out.jsonl"), "it must end in .parquet"),
        ((*STEPS, "--data", "shipped:none"), "data is 'shipped:none', which is not in this installation"),
    ],
    ids=["text", "method", "long", "few", "length", "column", "name", "shipped"],
)
def test_what_verl_would_get_wrong_is_refused(export, tmp_path, capfd, words, sentence):
    assert export(*words) == 2
    assert sentence in " ".join(capfd.readouterr().err.split())
    assert not (tmp_path / "out.parquet").exists()


def test_a_guided_method_without_responses_is_refused(export, tmp_path, capfd):
    (tmp_path / "data.jsonl").write_text('{"prompt": "1+1="}\n')
    assert export("--chat", "--batch_size", "1", "--max_response_length", "8") == 2
    assert "there is no teacher_response, but method 'tropd' starts rollouts from it" in capfd.readouterr().err


def test_the_order_is_a_function_of_the_seed():
    orders = [list(Order(2, 6, 8, seed=seed).numbers(5)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2] and len(orders[0]) == 12


def test_rows_without_a_prompt_are_refused():
    with pytest.raises(ValueError, match="there are no prompts"):
        list(training_rows([], get_method("tropd"), Order(1, 1, 8)))
    with pytest.raises(ValueError, match="steps is 0; it must be at least 1"):
        Order(1, 0, 8)


def test_a_teacher_of_several_is_found_by_its_name():
    row = next(iter(validation_rows([Prompt([], source="code")])))
    assert row["data_source"] == "code"


def test_a_sequence_has_a_number_that_an_uint64_holds():
    assert 0 <= row_number([1, 2, 3]) < 2**63 and row_number([1, 23]) != row_number([12, 3])
