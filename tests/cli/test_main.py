"""The door: help that teaches and loads quickly, commands through the real executable."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tropd.cli.main import COMMANDS, build_parser

COMMAND = Path(sys.executable).with_name("tropd")


def real(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([COMMAND, *words], check=False, capture_output=True, text=True, timeout=120, **options)


def test_help_teaches_the_way_from_two_models_to_a_student(tropd, capsys):
    assert tropd().code == 0
    with pytest.raises(SystemExit) as stop:
        tropd("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for command in ("check", "train", "generate", "student", "plan", "methods"):
        assert f"tropd {command}" in text or f"\n    {command} " in text
    assert "tropd train --student small/ --teacher large/ --data" in text


def test_building_every_parser_imports_nothing_heavy():
    code = (
        "import sys; from tropd.cli.main import build_parser; build_parser().format_help(); "
        "print(*sorted({'torch', 'transformers', 'trl', 'datasets', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_shows_an_example(name, capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args([name, "--help"])
    text = capsys.readouterr().out.split("usage:")[1].split("\n", 1)[1]
    assert f"tropd {name}" in text
    assert not re.search(r"(?<!\w)(recipes|src|tools|docs/assets)/", text)  # an installed package has no such folders


def test_the_help_of_train_lists_every_field_of_ours(capsys):
    from dataclasses import fields

    from tropd.run.settings import RunSettings
    from tropd.training.method_settings import MethodSettings

    with pytest.raises(SystemExit):
        build_parser().parse_args(["train", "--help"])
    text = capsys.readouterr().out
    assert all(f"\n  {field.name} " in text for field in (*fields(RunSettings), *fields(MethodSettings)))


def test_a_mistake_of_the_real_command_is_a_sentence_and_exit_code_2():
    done = real("train", "--student", "a", "--teacher", "b", "--data", "c", "--output_dir", "d", "--method", "trop")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: method is 'trop', which is unknown (did you mean 'tropd'?)")
    assert "Traceback" not in done.stderr


def test_debug_of_the_real_command_shows_the_traceback():
    done = real("--debug", "trian")
    assert done.returncode == 1 and "Traceback" in done.stderr and "did you mean 'train'?" in done.stderr


def test_python_m_tropd_is_the_command():
    done = subprocess.run([sys.executable, "-m", "tropd", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == real("--version").stdout


def test_only_the_first_process_of_a_run_speaks():
    environment = os.environ | {"RANK": "1"}
    assert real("methods", env=environment).stdout == ""
    assert "tropd_mask" in real("methods", env=os.environ | {"RANK": "0"}).stdout
