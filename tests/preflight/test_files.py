"""The small files of a model: what is absent, what is broken, and what is not to be found at all."""

import shutil

import pytest

from shipped import teacher_path
from tropd.models.files import explained, read_model_files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(teacher_path(), tmp_path / "teacher")


def test_generation_settings_come_from_the_configuration_only_where_their_file_is_absent(folder):
    file = folder / "generation_config.json"
    file.write_text('{"eos_token_id": [1, 3]}')
    assert {1, 3} <= set(read_model_files(folder).eos_ids)
    file.write_text('{"eos_token_id": [1, 3]')
    with pytest.raises(ValueError, match=r"teacher is '.*', whose generation_config.json cannot be read: "):
        read_model_files(folder, role="teacher")
    file.unlink()
    assert read_model_files(folder).generation_config.eos_token_id == read_model_files(folder).config.eos_token_id


@pytest.mark.parametrize(
    ("name", "hint"), [("techer", " Did you mean 'teacher'?"), ("unlike", ""), ("org/teacher", "")]
)
def test_a_model_that_is_nowhere_is_a_sentence_with_the_nearest_folder(name, hint, folder):
    start = f"student is {name!r}, which is not a model folder here and cannot be loaded from the Hub: "
    with pytest.raises(ValueError) as caught:
        read_model_files(name, role="student")
    said = str(caught.value)
    assert said.startswith(start) and "\n" not in said
    assert said.endswith(hint) and ("Did you mean" in said) == bool(hint)


def test_a_folder_that_transformers_cannot_read_is_said_to_be_here(folder):
    said = "teacher is 'teacher', whose files Transformers cannot read: Can't load the tokenizer."
    with pytest.raises(ValueError, match=said), explained("teacher", "teacher"):
        raise OSError("Can't load the tokenizer.\nMore of it.")


def test_a_model_without_a_role_is_a_model(folder):
    with pytest.raises(ValueError, match="model is 'org/model', which is not a model folder here"):
        read_model_files("org/model", trust_remote_code=False)


def test_errors_of_the_disk_travel():
    with pytest.raises(PermissionError), explained("teacher", "teacher"):
        raise PermissionError(13, "Permission denied", "teacher/model.safetensors")
