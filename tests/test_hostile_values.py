"""Every public entry under a fuzzer of types: what is not used is refused, and what refuses is a sentence.

The quick part takes the same few examples each time; `pytest -m slow` takes thousands, also the same ones each time,
so that a commit passes or fails for what is in it. `TROPD_FUZZ=1 pytest -m slow` looks for others.
"""

import csv
import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shipped
from hostile import JSON, PYTHON, SCALARS, begins_with, is_sentence, says_one_of
from tropd import METHODS, TrOPDConfig, get_method
from tropd.comparison.plan import Plan, Setting
from tropd.comparison.plan_file import load_plan, read_plan
from tropd.data import load_prompts
from tropd.objective import SETTINGS, Method
from tropd.run.configuration import resolve
from tropd.run.prepare import arguments_of
from tropd.run.settings import RunSettings
from tropd.training.checkpointing.checkpoints import MANIFEST, fault_of, steps_of, write_manifest

ROOT = Path(__file__).parents[1]
ON_CPU = {"use_cpu": True, "bf16": False, "report_to": "none", "method": "opd"}
HOST = [field.name for field in dataclasses.fields(TrOPDConfig)]
RUN = [field.name for field in dataclasses.fields(RunSettings)]
PARTS = [field.name for field in dataclasses.fields(Method)]
PAIR = {"student": str(shipped.student_path()), "teacher": str(shipped.teacher_path())}


def examples(few: int, many: int):
    """The test twice: a few examples, and many in the slow part; always the same unless TROPD_FUZZ is set."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
    common = {"suppress_health_check": checks}
    chosen = {
        "few": settings(max_examples=few, **common),
        "many": settings(max_examples=many, **common),
    }

    def twice(test):
        @pytest.mark.parametrize("part", ["few", pytest.param("many", marks=pytest.mark.slow)])
        def run(part, tmp_path, monkeypatch):
            monkeypatch.chdir(tmp_path)
            chosen[part](test)()

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return twice


# ---------------------------------------------------------------------- Python


@examples(150, 6000)
@given(st.sampled_from(HOST), PYTHON)
def test_a_field_of_the_configuration_holds_its_type_or_is_refused(name, value):
    try:
        made = TrOPDConfig(**{"output_dir": "out", **ON_CPU, name: value})
    except Exception as error:
        says_one_of(error, HOST)
        return
    default = type(made).__dataclass_fields__[name].default
    if value is not None and isinstance(default, (int, float)) and not isinstance(default, bool):
        assert type(value) is not bool and not isinstance(value, str), "a number is a number"
        assert math.isfinite(value) or name == "max_grad_norm"


@examples(100, 3000)
@given(st.sampled_from(sorted(METHODS)) | PYTHON, st.dictionaries(st.sampled_from(SETTINGS), PYTHON, max_size=2))
def test_a_method_is_resolved_or_refused(name, changes):
    try:
        get_method(name, **changes)
    except Exception as error:
        says_one_of(error, ("method", *SETTINGS))


@examples(100, 3000)
@given(st.sampled_from(sorted(METHODS)), st.sampled_from(PARTS), PYTHON)
def test_a_method_made_by_hand_has_no_part_that_nothing_reads(name, part, value):
    try:
        dataclasses.replace(METHODS[name], **{part: value})
    except Exception as error:
        says_one_of(error, [part])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"learning_rate": "5e-6"}, r"learning_rate is '5e-6'; it takes a number, and this is text"),
        ({"learning_rate": math.inf}, r"learning_rate is inf; it takes a finite number"),
        ({"max_steps": True}, r"max_steps is True; it takes a whole number"),
        ({"max_steps": 10.5}, r"max_steps is 10\.5; it takes a whole number"),
        ({"bf16": 1}, r"bf16 is 1; it takes true or false or None"),
        ({"seed": 2**70}, r"seed is 1180591620717411303424; integers are limited to 64 bits"),
        ({"ending_ids": [2, "3"]}, r"ending_ids\[1\] is '3'; it takes a whole number"),
        ({"ending_ids": [-1]}, r"ending_ids is \[-1\]; name token ids, which count from 0"),
        ({"reward_weights": [math.nan]}, r"reward_weights\[0\] is nan; it takes a finite number"),
        ({"generation_kwargs": "{"}, r"generation_kwargs is '\{', which is not a mapping as JSON"),
        ({"chat_template_kwargs": {1: True}}, r"chat_template_kwargs has the key 1; its keys are text"),
        ({"teacher_chat_template": {"math": 5}}, r"teacher_chat_template\.math is 5; it takes text"),
        ({"save_strategy": "step"}, r"save_strategy is 'step' \(did you mean 'steps'\?\); choose one of: no, steps"),
        ({"lr_scheduler_type": "cosin"}, r"lr_scheduler_type is 'cosin' \(did you mean 'cosine'\?\)"),
        ({"top_p": 0.0}, r"top_p is 0\.0; it is a share of the softmax that is kept"),
        ({"num_generations": None}, r"num_generations is None; a prompt needs at least 1 rollout"),
        ({"accelerator_config": {"flux": 1}}, r"accelerator_config has 'flux', which is not accepted there"),
        ({"ddp_backend": "gloo"}, r"ddp_backend is 'gloo', but this process was not started by a launcher"),
        ({"debug": "x"}, r"debug is 'x', which cannot be read \(ValueError: x is not a valid DebugOption"),
        ({"output_dir": "a\0b"}, r"output_dir is 'a\\x00b', which contains a NUL character"),
    ],
)
def test_what_a_field_cannot_be_is_said_of_it(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrOPDConfig(**{"output_dir": "out", **ON_CPU, **settings})


def test_what_the_host_makes_of_its_fields_is_taken_again():
    made = TrOPDConfig("out", max_grad_norm=math.inf, save_strategy="no", **ON_CPU)
    again = dataclasses.replace(made, generation_batch_size=None, seed=3)
    assert again.seed == 3 and again.lr_scheduler_type == made.lr_scheduler_type


# ---------------------------------------------------------------------- files


@examples(60, 3000)
@given(st.sampled_from([*HOST, *RUN, "extends", "x"]), JSON, st.booleans())
def test_a_field_in_a_file_or_on_the_command_line_is_read_or_refused(name, value, as_flag):
    written = PAIR | {"data": "prompts.jsonl", "output_dir": "out", "report_to": "none"}
    words = [f"--{name}={value}"] if as_flag else []
    Path("run.yaml").write_text(yaml.safe_dump(written if as_flag else written | {name: value}))
    try:
        arguments_of(resolve("run.yaml", words))
    except Exception as error:
        says_one_of(error, [name, "run.yaml", "lora_r", *HOST])


@examples(60, 2000)
@given(
    st.sampled_from(["prompt", "teacher_response", "teacher_prompt", "tools", "teacher", "solution", "x\x1b[2J"]),
    JSON | st.lists(st.fixed_dictionaries({"role": SCALARS, "content": SCALARS}, optional={"tool_calls": JSON})),
    st.sampled_from(["jsonl", "json", "csv", "parquet"]),
    st.sampled_from([{}, {"chat": True}, {"system_prompt": "Be brief."}, {"teachers": ["a", "b"]}]),
)
def test_a_row_is_read_or_refused_by_its_place(column, value, kind, options):
    rows = [{"prompt": "1+2=", "teacher": "a"}, {"prompt": "3+4=", "teacher": "a", column: value}]
    try:
        path = write_rows(Path(f"rows.{kind}"), rows)
    except Exception:  # such as half a surrogate pair, which no file holds
        return
    try:
        load_prompts(path, **options)
    except Exception as error:
        says_one_of(error, [Path(path).stem])


def write_rows(path: Path, rows: list[dict]) -> str:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows[1:]), path)
    return str(path)


DEMO = yaml.safe_load((ROOT / "recipes/proving_ground/demo.yaml").read_text())


@examples(120, 4000)
@given(st.sampled_from(dataclasses.fields(Plan) + dataclasses.fields(Setting)), JSON)
def test_a_plan_is_read_or_refused_in_its_own_words(field, value):
    plan = json.loads(json.dumps(DEMO))
    (plan if field in dataclasses.fields(Plan) else next(iter(plan["settings"].values())))[field.name] = value
    Path("plan.yaml").write_text(yaml.safe_dump(plan))
    try:
        load_plan("plan.yaml")
    except Exception as error:
        begins_with(error, "plan.yaml", raw=False)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"select_on": None}, "select_on is None; it takes text"),
        ({"prompt_seed": -1}, "a seed is -1; seeds are whole numbers from 0"),
        ({"seeds": [True]}, r"seeds\[0\] is True; it takes a whole number"),
        ({"learning_rates": [math.inf]}, r"learning_rates\[0\] is inf; it takes a finite number"),
        ({"methods": {"opd": 5}}, r"methods\.opd is 5; it takes a mapping"),
        ({"trainer": 5}, "trainer is 5; it takes a mapping"),
        ({"settings": {"one": {"student": 5}}}, r"settings\.one\.student is 5; it takes text or a mapping"),
    ],
)
def test_what_a_plan_cannot_hold_is_said_of_it(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_plan(DEMO | changes)


@examples(60, 2000)
@given(
    st.sampled_from(["global_step", "log_history", "stateful_callbacks", "best_model_checkpoint", None]),
    JSON,
    st.booleans(),
)
def test_a_checkpoint_is_whole_or_told_what_is_wrong_with_it(name, value, in_manifest):
    folder = Path("out/checkpoint-2")
    folder.mkdir(parents=True, exist_ok=True)
    state = {"global_step": 2, "log_history": [], "stateful_callbacks": {}, "best_model_checkpoint": None}
    changed = value if name is None else state | {name: value}
    (folder / "trainer_state.json").write_text(json.dumps(state if in_manifest else changed))
    write_manifest(folder)
    if in_manifest:
        (folder / MANIFEST).write_text(json.dumps({"files": {"trainer_state.json": value}} if name else value))
    fault = fault_of(folder)
    if fault is None:
        assert type(steps_of(folder)) is int and steps_of(folder) >= 0
    else:
        assert MANIFEST in fault or "trainer_state.json" in fault, fault


# ---------------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The shipped pair and a few prompts."""
    made = tmp_path_factory.mktemp("hostile")
    shutil.copytree(shipped.student_path(), made / "student")
    shutil.copytree(shipped.teacher_path(), made / "teacher")
    (made / "prompts.jsonl").write_text(json.dumps({"prompt": "1+2="}) + "\n")
    return made


COMMANDS = {
    "check": ["--student", "student", "--teacher", "teacher", "--data", "none.jsonl"],
    "train": ["--student", "student", "--teacher", "teacher", "--data", "none.jsonl", "--output_dir", "out"],
    "generate": ["--teacher", "teacher", "--data", "none.jsonl", "--out", "answers.jsonl"],
    "student": ["--teacher", "teacher", "--keep-layers", "9", "--out", "pruned"],
    "compare": ["none.yaml", "--out", "compared"],
    "plan": ["--student", "none", "--teacher", "teacher"],
}
"""Commands that fail for want of a file, whatever else is right: nothing is computed."""
OPTIONS = {
    "check": ["--config", "--steps", "--json", "--max_steps", "--x"],
    "train": ["--config", "--learning_rate", "--columns.prompt", "--x"],
    "generate": ["--max_new_tokens", "--temperature", "--seed", "--batch_size", "--columns", "--dtype", "--x"],
    "student": ["--keep-layers", "--out", "--x"],
    "compare": ["--jobs", "--only", "--teacher", "--sources", "--x"],
    "plan": ["--gpus", "--gpu", "--sequences_per_step", "--prompt_tokens", "--response_tokens", "--x"],
}


@pytest.mark.parametrize("part", ["few", pytest.param("many", marks=pytest.mark.slow)])
def test_an_option_of_a_command_is_answered_with_a_sentence(part, folder, capsys, monkeypatch):
    from tropd.cli.main import main

    monkeypatch.chdir(folder)
    values = SCALARS.filter(lambda value: value is not None).map(str) | st.sampled_from(["--", "-", "=", "9" * 40, "~"])

    @settings(max_examples=40 if part == "few" else 1500)
    @given(st.sampled_from([(c, option) for c, names in OPTIONS.items() for option in names]), values)
    def ask(asked, value):
        command, option = asked
        capsys.readouterr()
        code = main([command, *COMMANDS[command], f"{option}={value}"])
        if asked == ("student", "--keep-layers") and code == 0:
            assert re.fullmatch(r"\s*[0-9]+\s*(-[0-9]+\s*)?", value), "one layer, or a range, is a student"
            shutil.rmtree(folder / "pruned")
            return
        assert code == 2
        is_sentence(capsys.readouterr().err)

    ask()


@pytest.mark.parametrize("part", ["few", pytest.param("many", marks=pytest.mark.slow)])
def test_a_models_small_files_are_read_or_refused_by_folder_and_file(part, folder):
    from tropd.models.files import read_model_files
    from tropd.models.folder import check_model_folder, check_weights

    files = {
        "config.json": ["architectures", "model_type", "auto_map", "hidden_size", "head_dim", "dtype", "layer_types"],
        "generation_config.json": ["eos_token_id", "pad_token_id", "max_new_tokens", "temperature"],
        "tokenizer_config.json": ["eos_token", "model_max_length", "padding_side", "chat_template"],
    }
    files["config.json"] += ["logits_scaling", "final_logit_softcapping", "vocab_size", "num_hidden_layers"]
    before = {name: json.loads((folder / "student" / name).read_text()) for name in files}

    @settings(max_examples=30 if part == "few" else 1500)
    @given(st.sampled_from([(file, name) for file, names in files.items() for name in names]), JSON)
    def look(place, value):
        file, name = place
        path = folder / "student" / file
        path.write_text(json.dumps(before[file] | {name: value}))
        try:
            check_model_folder(path.parent, "student")
            check_weights(path.parent, "student")
            known = read_model_files(path.parent, role="student")
            assert all(0 <= one < 2**31 for one in known.eos_ids) and known.head_rows > 0
        except Exception as error:
            begins_with(error, f"student is {str(path.parent)!r}")
        finally:
            path.write_text(json.dumps(before[file]))

    look()
