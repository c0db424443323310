"""A student under an adapter whose base is the teacher: when one copy is both, and that it then is the base."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from peft import LoraConfig

from training import tiny
from tropd.run.adapter import own_bases
from tropd.run.configuration import resolve
from tropd.teacher.adapter_base import BaseTeacher
from tropd.teacher.local import LocalTeacher
from tropd.teacher.shared_base import is_own_base, is_same_model, why_not_shared

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def lora(**changes):
    return LoraConfig(r=2, target_modules=["q_proj"], **({"init_lora_weights": False} | changes))


def args(student=None, teacher=None):
    return SimpleNamespace(model_init_kwargs=student, teacher_model_init_kwargs=teacher)


def test_a_folder_is_the_same_however_it_is_spelled(tmp_path, monkeypatch):
    (tmp_path / "small").mkdir()
    (tmp_path / "link").symlink_to("small")
    monkeypatch.chdir(tmp_path)
    for other in ("small/", "./small", str(tmp_path / "small"), "link"):
        assert is_same_model("small", other)
    assert not is_same_model("small", "large")
    assert is_same_model("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B")


@pytest.mark.parametrize(
    ("adapter", "student", "teacher", "reason"),
    [
        (None, None, None, "no adapter"),
        (lora(bias="all"), None, None, "biases"),
        (lora(init_lora_weights="pissa"), None, None, "'pissa' changes the base's weights"),
        (lora(init_lora_weights="olora"), None, None, "'olora' changes"),
        (lora(layer_replication=[(0, 2), (1, 2)]), None, None, "layer_replication=[(0, 2), (1, 2)] repeats the"),
        (lora(), None, {"dtype": "float16"}, "asks for another one"),
        (lora(), {"dtype": "bfloat16"}, None, None),
        (lora(), {"dtype": torch.bfloat16}, {"torch_dtype": "bfloat16"}, None),
        (lora(init_lora_weights="gaussian"), None, None, None),
    ],
)
def test_a_base_is_shared_where_it_stays_itself(adapter, student, teacher, reason):
    why = why_not_shared(adapter, student, teacher)
    assert (why is None) if reason is None else (reason in why)
    assert is_own_base("one", "one", adapter, args(student, teacher)) == (reason is None)
    assert not is_own_base("one", "another", adapter, args(student, teacher))


def test_folders_that_are_one_are_loaded_once_and_the_base_teaches(tmp_path):
    tiny.llama(1).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    folder, other = str(tmp_path / "model"), os.path.join(str(tmp_path), ".", "model")
    trainer = tiny.build(tmp_path / "run", folder, other, "tropd", trainer_options={"peft_config": lora()})
    assert isinstance(trainer.teacher, BaseTeacher) and trainer.teacher.model is trainer.model
    base = LocalTeacher(tiny.llama(1))
    request = ([[5, 6, 7]], [[8, 9, 10]], [[True] * 3])
    trained = trainer.model.training
    expected = base.score(*request, pad_id=0)
    torch.testing.assert_close(trainer.teacher.score(*request, pad_id=0).logp, expected.logp)
    trainer.train()
    torch.testing.assert_close(trainer.teacher.score(*request, pad_id=0).logp, expected.logp)
    assert trainer.model.training == trained
    assert any(parameter.requires_grad for parameter in trainer.model.parameters())


def test_where_the_adapter_repeats_layers_the_teacher_is_a_copy_that_keeps_its_own(tmp_path):
    folder, adapter = tmp_path / "model", lora(layer_replication=[(0, 2), (1, 2)])
    tiny.llama(1).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    trainer = tiny.build(tmp_path / "run", str(folder), str(folder), "opd", trainer_options={"peft_config": adapter})
    layers = [len(model.get_decoder().layers) for model in (trainer.model.get_base_model(), trainer.teacher.model)]
    assert layers == [3, 2] and not trainer.shares_base
    request = ([[5, 6, 7]], [[8, 9, 10]], [[True] * 3])
    expected = LocalTeacher(tiny.llama(1)).score(*request, pad_id=0)
    torch.testing.assert_close(trainer.teacher.score(*request, pad_id=0).logp, expected.logp)
    one = tiny.llama(1)
    with pytest.raises(ValueError, match=r"the same object.*layer_replication=.*Load the teacher separately"):
        tiny.build(tmp_path / "run", one, one, "opd", trainer_options={"peft_config": adapter})


def test_a_shared_base_writes_as_the_base_does(tmp_path):
    student, copy = tiny.llama(1), tiny.llama(1)
    shared = tiny.build(tmp_path, student, student, "tropd", trainer_options={"peft_config": lora()})
    apart = tiny.build(tmp_path, tiny.llama(1), copy, "tropd", trainer_options={"peft_config": lora()})
    written = [
        trainer.rollout_stage.find_prefixes([{"prompt": prompt} for prompt in tiny.PROMPTS], 0, 1.0, trainer.method)
        for trainer in (shared, apart)
    ]
    assert written[0] == written[1] and any(prefix.ids for prefix in written[0])


def test_one_object_that_cannot_be_both_is_refused_with_the_reason(tmp_path):
    model = tiny.llama(1)
    with pytest.raises(ValueError, match=r"the same object.*biases"):
        tiny.build(tmp_path, model, model, "opd", trainer_options={"peft_config": lora(bias="all")})
    with pytest.raises(ValueError, match=r"the same object.*no adapter"):
        tiny.build(tmp_path, model, model, "opd")


def test_the_recipe_for_one_gpu_loads_a_model_that_is_both_once():
    path = RECIPES / "lora_one_gpu.yaml"
    assert yaml.safe_load(path.read_text())["use_peft"]
    configuration = resolve(str(path), ["--teacher", "models/student"])
    configuration.trainer.update(use_cpu=True, bf16=False)
    assert own_bases(configuration.settings, configuration.training_arguments()) == {None}
