"""`tropd student` on real models."""

import argparse
import json
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, dynamic_module_utils

from shipped import teacher_path
from tropd.cli import student
from tropd.cli.main import main

pytestmark = pytest.mark.usefixtures("one_thread")


def run(*words):
    parser = argparse.ArgumentParser("tropd")
    student.add_options(parser)
    return student.run(parser.parse_args([*map(str, words)]))


def test_a_student_is_written_and_described(tmp_path, capfd):
    out = tmp_path / "student"
    assert run("--teacher", teacher_path(), "--keep-layers", "0-1,3", "--out", out) == 0
    said = capfd.readouterr().out
    assert "4 -> 3: kept 0,1,3" in said
    assert "of the teacher), float32" in said
    assert "healing" in said and f"tropd check --student {out}" in said
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 3


def test_an_output_with_files_in_it_is_refused(tmp_path):
    (tmp_path / "note.txt").touch()
    with pytest.raises(ValueError, match="already exists"):
        run("--teacher", teacher_path(), "--keep_layers", "0", "--out", tmp_path)


def test_a_teacher_that_is_nowhere_is_a_sentence(tmp_path, monkeypatch, capfd):
    shutil.copytree(teacher_path(), tmp_path / "teacher")
    monkeypatch.chdir(tmp_path)
    assert main(["student", "--teacher", "techer", "--keep_layers", "0", "--out", "out"]) == 2
    said = " ".join(capfd.readouterr().err.split())
    assert "teacher is 'techer', but there is no folder of this name" in said
    assert said.endswith("Did you mean 'teacher'?") and "Traceback" not in said
    assert main(["student", "--teacher", "shipped:techer", "--keep_layers", "0", "--out", "out"]) == 2
    assert "teacher is 'shipped:techer', which is not in this installation" in capfd.readouterr().err


def test_code_that_a_teacher_brings_runs_only_when_it_is_trusted(tmp_path, monkeypatch, capfd):
    """A folder whose classes are files of its own."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    teacher, out = shutil.copytree(teacher_path(), tmp_path / "teacher"), tmp_path / "out"
    (teacher / "own_config.py").write_text(
        "from transformers import LlamaConfig\n\n\nclass OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    )
    (teacher / "own_model.py").write_text(
        "from transformers import LlamaForCausalLM\n\nfrom .own_config import OwnConfig\n\n\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((teacher / "config.json").read_text()) | {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own_config.OwnConfig", "AutoModelForCausalLM": "own_model.OwnModel"},
    }
    (teacher / "config.json").write_text(json.dumps(config))
    words = ["student", "--teacher", str(teacher), "--keep_layers", "0-2", "--out", str(out)]
    assert main(words) == 2
    assert "trust_remote_code" in capfd.readouterr().err
    assert main([*words, "--trust_remote_code"]) == 0
    assert (out / "model.safetensors").is_file()


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"teacher is .* not a model folder"):
        run("--teacher", tmp_path, "--keep_layers", "0", "--out", tmp_path / "out")


def test_layers_are_refused_before_the_weights_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(ValueError, match="there is no layer 7"):
        run("--teacher", teacher_path(), "--keep_layers", "0,7", "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_stories_model_without_two_layers_still_reads(tmp_path, stories260k, capfd):
    out = tmp_path / "student"
    assert run("--teacher", stories260k, "--keep-layers", "0,1,4", "--out", out) == 0
    assert "260,032 -> 169,152 (65.1% of the teacher)" in capfd.readouterr().out
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(out)(input_ids=torch.tensor([[1, 403, 407]])).logits
    assert logits.isfinite().all()


def test_importing_the_command_is_light():
    heavy = {"torch", "transformers", "datasets", "numpy"}
    code = f"import sys, tropd.cli.student, tropd.cli.generate; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
