"""Model folders with one thing wrong, and what a person reads about it."""

import json
import shutil
import struct
import subprocess
import sys

import pytest

from tropd.models.folder import check_model_folder, is_local, weight_bytes

HEADER = {"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}


def safetensors(header=HEADER, data=bytes(16)):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture
def folder(tmp_path):
    """A folder that is complete as far as its files tell."""
    path = tmp_path / "models" / "teacher"
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    (path / "model.safetensors").write_bytes(safetensors())
    (path / "tokenizer.json").write_text("{}")
    return path


def sentence(path, role="teacher"):
    with pytest.raises(ValueError) as caught:
        check_model_folder(path, role)
    text = str(caught.value)
    assert text.startswith(f"{role} is {str(path)!r}") and text.endswith((".", "?"))
    return text


def test_a_complete_folder_passes(folder):
    check_model_folder(folder, "teacher")
    check_model_folder(str(folder), "student")
    assert weight_bytes(folder) == (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen3-0.6B", "org/name_1.5-B"])
def test_a_name_of_the_hub_is_let_through(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not is_local(name)
    check_model_folder(name, "student")


@pytest.mark.parametrize("name", ["./teacher", "/models/teacher", "../x", "a/b/c", "~/teacher", "teacher/"])
def test_what_can_only_be_a_path_is_local(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_local(name)
    sentence(name)


def test_a_missing_folder_suggests_its_neighbour(folder, monkeypatch):
    assert f"Did you mean {str(folder)!r}?" in sentence(folder.parent / "techer")
    assert "has: teacher" in sentence(folder.parent / "zzzzz")
    monkeypatch.chdir(folder.parents[1])
    assert "Did you mean 'models/teacher'?" in sentence("models/teachr")
    assert "does not exist either" in sentence("nowhere/at/all")


def test_a_home_that_no_shell_read(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(tmp_path / "teacher") in sentence("~/teacher")


def test_a_file_is_not_a_folder(folder):
    assert str(folder) in sentence(folder / "config.json", "student")


def test_a_folder_without_config_names_the_checkpoint_inside(folder, tmp_path):
    inside = tmp_path / "run"
    for step in (200, 1000):
        shutil.copytree(folder, inside / f"checkpoint-{step}")
    assert "checkpoint-1000" in sentence(inside)
    (tmp_path / "empty").mkdir()
    assert "save_pretrained" in sentence(tmp_path / "empty")


def test_an_adapter_is_named_with_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    found = sentence(tmp_path)
    assert "PEFT adapter of 'org/base'" in found and "merge" in found


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "no model_type"),
        ('{"model_type": "bert", "architectures": ["BertForMaskedLM"]}', "BertForMaskedLM"),
        ('{"model_type": "llama", "architectures": ["LlamaModel"]}', "LlamaModel"),
        ('{"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": true}', "T5"),
    ],
)
def test_a_configuration_of_no_causal_language_model(folder, config, said):
    (folder / "config.json").write_text(config)
    assert said in sentence(folder)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama"},
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
        {"model_type": "own", "architectures": ["Own"], "auto_map": {"AutoModelForCausalLM": "modeling.Own"}},
    ],
)
def test_other_causal_language_models_pass(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    check_model_folder(folder, "teacher")


def test_no_weights_pickled_weights_and_weights_of_another_name(folder):
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    assert "consolidated.safetensors" in sentence(folder)
    (folder / "consolidated.safetensors").unlink()
    assert "no weights" in sentence(folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    found = sentence(folder)
    assert "pickled (pytorch_model.bin)" in found and "can run any code" in found and "save_pretrained" in found


def test_missing_shards_are_counted(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00003.safetensors")
    names = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"w{n}": name for n, name in enumerate(names)}}))
    assert "2 of the 3 files" in (found := sentence(folder)) and names[1] in found
    for number, name in enumerate(names):
        (folder / name).write_bytes(safetensors({f"w{number}": HEADER["w"]}))
    check_model_folder(folder, "teacher")
    index.write_text("{}")
    assert "no weight_map" in sentence(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (safetensors()[:-1], "not fully covered"),
        (safetensors() + b"x", "not fully covered"),
        (safetensors()[:40], "invalid header length"),
        (b"", "header too small"),
        (b"nothing of the kind", "header too large"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_weights_that_are_not_whole(folder, content, said):
    (folder / "model.safetensors").write_bytes(content)
    assert said in sentence(folder)


def test_a_missing_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in sentence(folder)
    (folder / "tokenizer.model").touch()
    check_model_folder(folder, "teacher")


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json"]
)
@pytest.mark.parametrize("content", [b'{"cut": ', b"", b"\xff\xfe", b"[]"])
def test_a_small_file_that_is_there_and_broken_is_refused(name, content, folder):
    (folder / name).write_bytes(content)
    found = sentence(folder, "student")
    assert f"whose {name} is not" in found and "Copy or download that file again" in found


def test_tensors_that_the_index_promises_are_in_the_files(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys(["w", "x", "y"], "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "names tensors that no file holds: x, y, which should be in model-00001-of-00001" in sentence(folder)


def test_a_real_folder_passes(stories260k):
    check_model_folder(stories260k, "teacher")


def test_looking_at_a_folder_imports_nothing_heavy():
    code = (
        "import sys, tropd.models.folder; print(*{'torch', 'transformers', 'numpy', 'safetensors'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
