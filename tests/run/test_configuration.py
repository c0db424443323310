"""YAML, `extends` and overrides become one configuration; mistakes are named by file and line."""

import re

import pytest

from tropd.run.configuration import read_overrides, resolve

WHOLE = """\
student: small
teacher: large
data: prompts.jsonl
output_dir: out
learning_rate: 5e-6
columns: {prompt: question}
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text=WHOLE, name="run.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(*arguments) -> str:
    with pytest.raises(ValueError) as error:
        resolve(*arguments)
    return str(error.value)


def test_values_have_the_types_of_their_fields(file):
    configuration = resolve(file())
    assert configuration.settings.columns == {"prompt": "question"}
    assert configuration.trainer == {"output_dir": "out", "learning_rate": 5e-6}  # YAML 1.1 reads 5e-6 as text


def test_the_command_line_wins_over_the_file(file):
    words = ["--learning-rate=1e-4", "--chat", "--columns.teacher_response", "answer", "--reward_funcs", "a.b", "c.d"]
    configuration = resolve(file(), words)
    assert configuration.trainer["learning_rate"] == 1e-4
    assert configuration.settings.chat is True
    assert configuration.settings.columns == {"prompt": "question", "teacher_response": "answer"}
    assert configuration.settings.reward_funcs == ["a.b", "c.d"]


def test_a_file_extends_another_beside_it(file):
    file(name="base/common.yaml")
    path = file("extends: base/common.yaml\nlearning_rate: 1.0e-3\n")
    configuration = resolve(path)
    assert (configuration.settings.student, configuration.trainer["learning_rate"]) == ("small", 1e-3)
    assert configuration.places["student"] == "base/common.yaml, line 1"
    assert configuration.places["learning_rate"] == "run.yaml, line 2"


def test_null_gives_a_part_back_to_the_method(file):
    file(WHOLE + "fkl_top_k: 8\n", name="base.yaml")
    configuration = resolve(file("extends: base.yaml\nmethod: opd\nfkl_top_k: null\n"))
    assert configuration.trainer["fkl_top_k"] is None


def test_no_file_is_needed_where_the_command_line_says_everything():
    configuration = resolve(None, ["--student", "a", "--teacher", "b", "--data", "c", "--output_dir", "d"])
    assert (configuration.settings.teacher, configuration.trainer) == ("b", {"output_dir": "d"})


def test_a_word_that_yaml_reads_otherwise_stays_text_where_text_is_wanted(file):
    configuration = resolve(file(), ["--run_name", "12", "--data", "7"])
    assert (configuration.trainer["run_name"], configuration.settings.data) == ("12", "7")


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--flag"], True),
        (["--flag", "false"], False),
        (["--n", "3"], 3),
        (["--name", "- not: [yaml"], "- not: [yaml"),
        (["--list", "1", "2"], [1, 2]),
        (["--negative", "-2.5"], -2.5),
        (["--map", "{a: 1}"], {"a": 1}),
        (["--map.a", "1", "--map.b", "2"], {"a": 1, "b": 2}),
    ],
)
def test_overrides_read_as_yaml(words, value):
    (read,) = read_overrides(words).values()
    assert read.value == value


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (WHOLE + "lerning_rate: 1\n", r"run.yaml, line 7: lerning_rate is unknown \(did you mean 'learning_rate'\?\)"),
        (WHOLE + "dataset_name: x\n", "run.yaml, line 7: dataset_name is unknown; here it is 'data'"),
        (WHOLE + "aa: 1\nbb: 2\n", "line 7: aa is unknown.*line 8: bb is unknown.*`tropd train --help`"),
        (WHOLE + "method: tropdd\n", r"run.yaml, line 7: method is 'tropdd', which is unknown \(did you mean 'tropd'"),
        (WHOLE + "method: opd\nfkl_top_k: 3\n", "run.yaml, line 8: fkl_top_k is 3, which would have no effect"),
        (WHOLE + "max_steps: many\n", "run.yaml, line 7: max_steps is 'many'; input should be a valid integer"),
        (WHOLE + "max_steps: 1.5\n", "run.yaml, line 7: max_steps is 1.5; input should be a valid integer"),
        (WHOLE + "student: again\n", "run.yaml, line 7: student was given already .run.yaml, line 1"),
        (WHOLE + "overlong_prompts: trim\n", "overlong_prompts is 'trim'; input should be 'refuse' or 'drop'"),
        (WHOLE + "lora_r: 8\n", "lora_r is 8, which has no effect without an adapter. Set use_peft: true"),
        (WHOLE + "max_prompts: 0\n", "max_prompts is 0; use at least 1"),
        ("student: [a\nteacher: b\n", "run.yaml, line 2 is not YAML"),
        ("- a\n- b\n", "run.yaml should map fields to values"),
        ("", "run.yaml is empty"),
        ("student: !!python/object:os.system x\n", "run.yaml, line 1: the value of student cannot be read"),
        ("extends: gone.yaml\n", "run.yaml, line 1: extends is 'gone.yaml', but there is no file gone.yaml"),
        ("extends: run.yaml\n", "run.yaml, line 1: extends is 'run.yaml', which extends this file in turn"),
        ("teacher: a\ndata: b\noutput_dir: c\n", "student is not set; name the model that learns"),
        ("student: a\ndata: b\noutput_dir: c\n", "teacher is not set; name the model that scores"),
        ("student: a\nteacher: b\noutput_dir: c\n", "data is not set; name the prompts"),
        ("student: a\nteacher: b\ndata: c\n", "output_dir is not set; name a folder"),
    ],
)
def test_a_mistake_is_named_by_file_and_line(file, text, sentence):
    assert re.search(sentence, refusal(file(text)))


def test_a_contradiction_that_trl_sees_is_placed_too(file):
    configuration = resolve(file(WHOLE + "beta: 0.04\n"))
    with pytest.raises(ValueError, match=r"run\.yaml, line 7: beta is 0\.04, but it belongs to GRPO's loss"):
        configuration.training_arguments(use_cpu=True, bf16=False)


def test_a_missing_file_suggests_the_nearest(file):
    file(name="recipe.yaml")
    assert refusal("recipes.yaml") == "--config is 'recipes.yaml', but there is no such file. Did you mean recipe.yaml?"


def test_no_configuration_says_what_to_give():
    assert refusal(None).startswith("there is no configuration. Give a file, `--config")


def test_a_word_that_is_no_field_is_refused():
    assert refusal(None, ["learning_rate", "1"]).startswith("'learning_rate' is not a field; overrides look like `--")
