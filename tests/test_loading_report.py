"""Weights that lack a tensor are refused before Transformers fills it with random numbers, and whole ones are not."""

import json
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, Qwen3Config, Qwen3MoeConfig

from shipped import student_path, teacher_path
from tropd.models.folder import check_model_folder, check_weights
from tropd.models.loading_report import loading_report

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "llama, tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES),
    "gemma2": Gemma2Config(**SIZES),
    "gpt2": GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2),
    "experts": Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8),
}


def saved(config, folder, **options):
    """A random model's folder; a fast tokenizer's file that nothing reads here."""
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, **options)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def rewrite(file, change):
    tensors = load_file(file)
    save_file(change(tensors), file, {"format": "pt"})


def without(*names):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def refused(folder, role="teacher"):
    with pytest.raises(ValueError) as caught:
        check_weights(folder, role)
    text = str(caught.value)
    assert text.startswith(f"{role} is {str(folder)!r}, whose weights") and text.endswith(".")
    return text


@pytest.mark.parametrize("name", CONFIGS)
def test_what_save_pretrained_wrote_is_whole_and_its_tensors_are_needed(name, tmp_path):
    folder = saved(CONFIGS[name], tmp_path)
    check_weights(folder, "student")
    whole = load_file(folder / "model.safetensors")
    for lost in sorted(whole)[::4]:
        save_file(without(lost)(whole), folder / "model.safetensors", {"format": "pt"})
        refused(folder)


def test_the_shipped_pair_is_whole_in_a_moment():
    started = time.perf_counter()
    check_weights(student_path(), "student")
    check_weights(str(teacher_path()), "teacher")
    assert time.perf_counter() - started < 1


def test_up_to_three_missing_tensors_are_named(tmp_path):
    folder = saved(CONFIGS["llama"], tmp_path)
    rewrite(folder / "model.safetensors", without("model.layers.1.mlp.up_proj.weight"))
    assert "lack model.layers.1.mlp.up_proj.weight: its config.json requires" in refused(folder, "student")
    rewrite(folder / "model.safetensors", lambda tensors: {"other": tensors["lm_head.weight"]})
    assert "lack lm_head.weight, model.embed_tokens.weight, model.layers.0" in (found := refused(folder))
    assert "and 18 more" in found and "random numbers" in found


def test_a_tied_head_need_not_be_stored_and_an_untied_one_must(tmp_path):
    tied = saved(CONFIGS["llama, tied"], tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    check_weights(tied, "student")
    config = json.loads((tied / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    assert "lack lm_head.weight:" in refused(tied)


@pytest.mark.parametrize("name", ["llama, tied", "gpt2"])
def test_names_that_transformers_translates_are_no_alarm(name, tmp_path):
    folder = saved(CONFIGS[name], tmp_path)
    prefix = {"gpt2": "transformer."}.get(name, "model.")
    rewrite(folder / "model.safetensors", lambda tensors: {k.removeprefix(prefix): v for k, v in tensors.items()})
    check_weights(folder, "teacher")


def test_tensors_that_no_model_asks_for_are_no_alarm(tmp_path):
    folder = saved(CONFIGS["llama"], tmp_path)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "steps": torch.tensor(7)}
    rewrite(folder / "model.safetensors", lambda tensors: tensors | extra)
    check_weights(folder, "teacher")


def test_a_configuration_of_another_size_is_refused_with_both_shapes(tmp_path):
    folder = saved(CONFIGS["llama"], tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 40}))
    assert "lm_head.weight is [32, 16] and should be [40, 16], model.embed_tokens" in refused(folder)


def test_shards_are_one_model(tmp_path):
    folder = saved(CONFIGS["qwen3"], tmp_path, max_shard_size=4000)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    check_model_folder(folder, "student")
    check_weights(folder, "student")
    lost = sorted(load_file(shards[1]))[0]
    rewrite(shards[1], without(lost))
    assert f"lack {lost}:" in refused(folder)
    with pytest.raises(
        ValueError, match=f"names tensors that no file holds: {lost}, which should be in {shards[1].name}"
    ):
        check_model_folder(folder, "student")
    shards[1].write_bytes(shards[0].read_bytes())
    with pytest.raises(ValueError, match="which should be in model-00002"):
        check_model_folder(folder, "student")


def test_nothing_is_loaded_so_the_size_does_not_matter(tmp_path):
    """A folder of 70 billion parameters without their bytes: the header is all that is read."""
    config = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        shapes = {name: list(t.shape) for name, t in AutoModelForCausalLM.from_config(config).state_dict().items()}
    end, header = 0, {}
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end := end + size]}
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)  # sparse: no block is written
    assert end > 140e9
    assert loading_report(tmp_path, [tmp_path / "model.safetensors"], "teacher") == ([], [])


def test_quantised_weights_and_names_of_the_hub_are_let_through(tmp_path, monkeypatch):
    folder = saved(CONFIGS["llama"], tmp_path)
    config = json.loads((folder / "config.json").read_text())
    quantised = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantised}))
    rewrite(folder / "model.safetensors", without("lm_head.weight"))
    check_weights(folder, "teacher")
    monkeypatch.chdir(tmp_path)
    check_weights("org/model", "teacher")


@pytest.mark.parametrize(
    "change", [{"num_hidden_layers": "two"}, {"hidden_size": -4}, {"num_attention_heads": 0}], ids=str
)
def test_a_configuration_that_describes_no_model_is_refused(tmp_path, change):
    folder = saved(CONFIGS["qwen3"], tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(
        ValueError, match=r"^teacher is '.*', whose config.json cannot be used by Transformers \(\w+: .*Correct what"
    ):
        check_weights(folder, "teacher")
