"""YAML, `extends` and overrides become one configuration; mistakes are named by file and line."""

import os
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


def test_numbers_inside_a_mapping_are_numbers(file):
    text = WHOLE + "model_init_kwargs: {a: 1e-4, b: -2E5, c: [1.5e3], d: [], e: 1e, f: '1e-4'}\n"
    found = resolve(file(text)).trainer["model_init_kwargs"]
    assert found == {"a": 1e-4, "b": -2e5, "c": [1500.0], "d": [], "e": "1e", "f": "1e-4"}


def test_an_alias_is_read_and_may_lead_back_to_where_it_stands(file):
    text = WHOLE + "model_init_kwargs: &m {a: {b: 1}}\nteacher_model_init_kwargs: *m\n"
    assert resolve(file(text)).trainer["teacher_model_init_kwargs"] == {"a": {"b": 1}}
    assert "line 1: the value of data cannot be read: found unconstructable" in refusal(file("data: &l [*l]\n"))


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


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run_name", "12"),
        ("run_name", "12:30"),
        ("run_name", "2026-13-45"),
        ("output_dir", "007"),
        ("output_dir", "2026-11-05"),
        ("output_dir", "1_000"),
        ("data", "7"),
        ("system_prompt", "Use tag #3 and # marks"),
        ("system_prompt", "Note: be brief"),
        ("system_prompt", "Solve it.\nThink step by step.\n\nAnswer last."),
        ("teacher_chat_template", "{% for m in messages %}{{ m.content }}{% endfor %}"),
    ],
)
def test_text_stays_as_it_was_typed(file, name, text):
    configuration = resolve(file(), [f"--{name}", text])
    found = configuration.trainer.get(name) or getattr(configuration.settings, name, None)
    assert found == text


@pytest.mark.parametrize(("name", "text"), [("output_dir", "007"), ("run_name", "12:30"), ("run_name", "2026-11-05")])
def test_unquoted_text_of_a_file_stays_text(file, name, text):
    whole = WHOLE.replace("output_dir: out\n", "") if name == "output_dir" else WHOLE
    assert resolve(file(whole + f"{name}: {text}\n")).trainer[name] == text


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--chat"], "chat", True),
        (["--chat", "false"], "chat", False),
        (["--max_steps", "3"], "max_steps", 3),
        (["--outlier_tau", "-2.5", "--method", "mask_outlier"], "outlier_tau", -2.5),
        (["--save_strategy", "no"], "save_strategy", "no"),
        (["--reward_weights", "1", "2.5"], "reward_weights", [1.0, 2.5]),
        (["--reward_funcs", "a.b"], "reward_funcs", ["a.b"]),
        (["--lora_target_modules", "q_proj", "v_proj", "--use_peft"], "lora_target_modules", ["q_proj", "v_proj"]),
        (["--model_init_kwargs", "{dtype: bfloat16}"], "model_init_kwargs", {"dtype": "bfloat16"}),
        (["--model_init_kwargs.dtype", "float32"], "model_init_kwargs", {"dtype": "float32"}),
        (["--guidance_length", "null"], "guidance_length", None),
        (["--pad_to_multiple_of", "8"], "pad_to_multiple_of", 8),
        (["--resume_from_checkpoint", "true"], "resume_from_checkpoint", "true"),
    ],
)
def test_an_override_has_the_type_of_its_field(file, words, field, value):
    configuration = resolve(file(), words)
    found = configuration.trainer.get(field, getattr(configuration.settings, field, None))
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("words", [["--learning_rate"], ["--learning_rate", "--max_steps", "3"], ["--run_name"]])
def test_a_field_without_its_value_is_refused(file, words):
    assert refusal(file(), words) == f"{words[0]} has no value; type one after it."


def test_one_way_to_give_a_mapping(file):
    words = ["--columns", "{prompt: q}", "--columns.prompt", "p"]
    assert refusal(file(), words) == "--columns was given as '{prompt: q}' and as --columns.prompt; use one of the two."


def test_an_override_reads_the_words_behind_it():
    assert {name: value.value for name, value in read_overrides(["--a-b=c", "--d", "e", "f", "--g"]).items()} == {
        "a_b": "c",
        "d": ["e", "f"],
        "g": [],
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (WHOLE + "lerning_rate: 1\n", r"run.yaml, line 7: lerning_rate is unknown \(did you mean 'learning_rate'\?\)"),
        (WHOLE + "dataset_name: x\n", "run.yaml, line 7: dataset_name is unknown; here it is 'data'"),
        (WHOLE + "aa: 1\nbb: 2\n", "line 7: aa is unknown.*\nrun.yaml, line 8: bb is unknown.*`tropd train --help`"),
        (WHOLE + "method: tropdd\n", r"run.yaml, line 7: method is 'tropdd', which is unknown \(did you mean 'tropd'"),
        (WHOLE + "method: opd\nfkl_top_k: 3\n", "run.yaml, line 8: fkl_top_k is 3, which would have no effect"),
        (WHOLE + "max_steps: many\n", "run.yaml, line 7: max_steps is 'many'; input should be a valid integer"),
        (WHOLE + "max_steps: 1.5\n", "run.yaml, line 7: max_steps is '1.5'; input should be a valid integer"),
        (WHOLE + "max_steps: yes\n", "run.yaml, line 7: max_steps is 'yes'; input should be a valid integer"),
        (WHOLE + "student: again\n", "run.yaml, line 7: student was already given .run.yaml, line 1"),
        (
            WHOLE + "model_init_kwargs:\n  a: 1\n  b: 1\n  a: 2\n",
            "line 10: model_init_kwargs.a was already given .*line 8",
        ),
        (WHOLE + "overlong_prompts: trim\n", "overlong_prompts is 'trim'; input should be 'refuse' or 'drop'"),
        (WHOLE + "lora_r: 8\n", "lora_r is 8, which has no effect without an adapter. Set use_peft: true"),
        (WHOLE + "max_prompts: 0\n", "max_prompts is 0; use at least 1"),
        ("student: [a\nteacher: b\n", "run.yaml, line 2 is not YAML"),
        ("- a\n- b\n", "run.yaml should map fields to values"),
        ("", "run.yaml is empty"),
        ("student: !!python/object:os.system x\n", "run.yaml, line 1: the value of student cannot be read"),
        ("extends: gone.yaml\n", "run.yaml, line 1: extends is 'gone.yaml', but there is no file gone.yaml"),
        ("extends: run.yaml\n", "run.yaml, line 1: extends is 'run.yaml', which in turn extends this file"),
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
    assert (
        refusal("recipes.yaml") == "--config is 'recipes.yaml', but there is no such file. Did you mean 'recipe.yaml'?"
    )


def test_no_configuration_says_what_to_give():
    assert refusal(None).startswith("there is no configuration. Give a file, `--config")


def test_a_word_that_is_no_field_is_refused():
    assert refusal(None, ["learning_rate", "1"]).startswith("'learning_rate' is not a field; overrides look like `--")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["false"], False),
        (["true"], True),
        ([], True),
        (["3"], 3),
        (["1e-5"], 1e-5),
        (["0.5"], 0.5),
        (["null"], None),
        (["high"], "high"),
        (["[1, 2]"], [1, 2]),
        (["{a: 1}"], {"a": 1}),
        (["1", "2"], [1, 2]),
        (["'3'"], "3"),
    ],
)
@pytest.mark.parametrize(
    "field", ["chat_template_kwargs", "teacher_chat_template_kwargs", "model_init_kwargs", "teacher_model_init_kwargs"]
)
def test_a_dotted_key_means_what_yaml_would_read(file, field, words, expected):
    found = resolve(file(), [f"--{field}.key", *words]).trainer[field]["key"]
    assert found == expected and type(found) is type(expected)


def test_a_dotted_key_of_a_mapping_of_names_stays_text(file):
    assert resolve(file(), ["--columns.prompt", "5"]).settings.columns == {"prompt": "5"}
    assert resolve(file(), ["--teacher.math", "007"]).settings.teachers == {"math": "007"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("columns: {prompt: a, prompt: b}\n", "run.yaml, line 1: columns.prompt was already given"),
        ("columns:\n  prompt: a\n  x: 1\n  prompt: b\n", "run.yaml, line 4: columns.prompt was already given"),
        ("? [a, b]\n: 1\n", "run.yaml, line 1: a field's name is text"),
        ("extends:\n", "run.yaml, line 1: extends has no value"),
        ("columns: " + "[" * 5000 + "]" * 5000 + "\n", "run.yaml is nested too deeply"),
        ("columns: &a {prompt: *a}\n", "run.yaml, line 1: the value of columns cannot be read"),
    ],
    ids=["twice in a line", "twice", "a list as a name", "extends nothing", "deep", "in itself"],
)
def test_what_yaml_would_take_without_a_word_is_refused(file, text, sentence):
    assert sentence in refusal(file(text))


def test_a_configuration_may_come_out_of_a_pipe(file):
    read, write = os.pipe()
    os.write(write, WHOLE.encode())
    os.close(write)
    try:
        assert resolve(f"/dev/fd/{read}").trainer["learning_rate"] == 5e-6
    finally:
        os.close(read)
