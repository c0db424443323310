"""A pruned model computes what its teacher computes with the other layers skipped, before and after it is saved."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    OlmoHybridConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from tools.proving_ground.tokenizer import build_tokenizer
from tropd.models.pruning import check_layers, decoder_layers, keep_layers, parse_layers, write_student

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KEEP = [0, 1, 4]
IDS = torch.randint(3, 32, (2, 12), generator=torch.Generator().manual_seed(0))

CONFIGS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "llama tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, sliding_window=4),
    "qwen2, two kinds of layers": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=3),
    "qwen3": Qwen3Config(**SIZES),
    "gemma2": Gemma2Config(**SIZES, sliding_window=4),
    "gemma3": Gemma3TextConfig(**SIZES, sliding_window=4),
    "gpt2": GPT2Config(vocab_size=32, n_embd=16, n_layer=6, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2),
    "experts by number": Qwen3MoeConfig(
        **SIZES, mlp_only_layers=[0, 4], num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8
    ),
}


pytestmark = pytest.mark.usefixtures("one_thread")


def random_model(config, dtype=torch.float32):
    """A model far from flat distributions: every weight differs, norms included."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(dtype)


@torch.no_grad()
def skipped_by_hand(model, keep):
    """The model's logits with the layers that are not kept replaced by nothing."""
    layers = decoder_layers(model)
    others = [layer for number, layer in enumerate(layers) if number not in keep]
    for layer in others:
        layer.forward = lambda hidden, *args, **kwargs: hidden
    logits = model(input_ids=IDS, use_cache=False).logits
    for layer in others:
        del layer.forward
    return logits


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in CONFIGS]
    + [(name, torch.bfloat16) for name in ("llama tied", "qwen2, two kinds of layers", "gemma2")],
)
def test_a_student_is_its_teacher_with_layers_skipped(name, dtype, tmp_path):
    random_model(CONFIGS[name], dtype).save_pretrained(tmp_path / "teacher")
    build_tokenizer().save_pretrained(tmp_path / "teacher")
    teacher = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher")
    expected = skipped_by_hand(teacher, KEEP)
    assert not torch.equal(expected, skipped_by_hand(teacher, range(6)))
    pruned = write_student(tmp_path / "teacher", KEEP, tmp_path / "student")

    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert student.dtype == dtype and student.config.num_hidden_layers == 3
    with torch.no_grad():
        assert torch.equal(student(input_ids=IDS, use_cache=False).logits, expected)
    assert pruned.kept == KEEP and pruned.layers_before == 6
    assert pruned.parameters_before == teacher.num_parameters()
    assert pruned.parameters_after == student.num_parameters() < teacher.num_parameters()


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gpt2"])
def test_a_pruned_model_generates_the_same_with_and_without_cache(name, tmp_path):
    model = random_model(CONFIGS[name])
    keep_layers(model, KEEP)
    model.save_pretrained(tmp_path)
    for student in (model, AutoModelForCausalLM.from_pretrained(tmp_path)):
        options = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 0}
        with_cache = student.generate(IDS, use_cache=True, **options)
        assert torch.equal(with_cache, student.generate(IDS, use_cache=False, **options))


def test_lists_with_an_entry_per_layer_keep_the_kept_layers_entries():
    model = random_model(CONFIGS["gemma2"])
    kinds = list(model.config.layer_types)
    keep_layers(model, KEEP)
    assert model.config.layer_types == [kinds[layer] for layer in KEEP]
    experts = random_model(CONFIGS["experts by number"])
    keep_layers(experts, KEEP)
    assert experts.config.mlp_only_layers == [0, 2]


def test_tokenizer_chat_template_and_generation_settings_come_along(tmp_path):
    teacher, tokenizer = random_model(CONFIGS["llama"]), build_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    teacher.generation_config.eos_token_id = [2, 3]
    teacher.generation_config.repetition_penalty = 1.5
    teacher.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    (tmp_path / "student").mkdir()
    write_student(tmp_path / "teacher", [0, 5], tmp_path / "student")
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert student.generation_config.eos_token_id == [2, 3]
    assert student.generation_config.repetition_penalty == 1.5
    assert AutoTokenizer.from_pretrained(tmp_path / "student").chat_template == tokenizer.chat_template
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student", "teacher"]
    assert [path.name for path in (tmp_path / "student").glob("*.safetensors")] == ["model.safetensors"]


def test_a_crash_leaves_no_half_folder(tmp_path, monkeypatch):
    teacher = random_model(CONFIGS["llama"])
    teacher.save_pretrained(tmp_path / "teacher")
    build_tokenizer().save_pretrained(tmp_path / "teacher")
    with monkeypatch.context() as broken:
        broken.setattr(type(build_tokenizer()), "save_pretrained", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            write_student(tmp_path / "teacher", KEEP, tmp_path / "student")
    assert not (tmp_path / "student").exists()
    write_student(tmp_path / "teacher", KEEP, tmp_path / "student")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student", "teacher"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            GPT2Config(vocab_size=32, n_embd=16, n_layer=6, n_head=2, scale_attn_by_inverse_layer_idx=True),
            "layer 1.attn.scaling",
        ),
        (
            Qwen3MoeConfig(
                **SIZES, decoder_sparse_step=2, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8
            ),
            "depends on the numbers of its layers",
        ),
    ],
)
def test_layers_that_would_be_loaded_as_others_are_refused(config, said):
    with pytest.raises(ValueError, match=said):
        keep_layers(random_model(config), [0, 2, 4])


LINEAR = {f"linear_{name}": 2 for name in ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")}
MIXED = {"num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (OlmoHybridConfig(**(SIZES | MIXED), **LINEAR), "cannot be described .*at least one attention layer"),
        (Lfm2Config(**(SIZES | MIXED | {"layer_types": ["conv", "full_attention"] * 2})), "cannot write"),
    ],
)
def test_a_hybrid_without_a_layer_of_each_kind_is_a_sentence(config, said):
    with pytest.raises(ValueError, match=rf"keep_layers leaves a .* that {said}.*Keep a layer of each kind"):
        keep_layers(random_model(config), [0, 2])
    keep_layers(model := random_model(config), [0, 1])
    assert model(IDS).logits.isfinite().all()


def test_an_unknown_architecture_is_a_sentence():
    model = random_model(CONFIGS["llama"])
    model.model.blocks = model.model.layers
    del model.model.layers
    with pytest.raises(ValueError, match="a LlamaForCausalLM, whose layers were not found"):
        keep_layers(model, KEEP)


def test_a_quantised_teacher_is_refused():
    model = random_model(CONFIGS["llama"])
    model.config.quantization_config = {"quant_method": "own"}
    with pytest.raises(ValueError, match="quantised"):
        keep_layers(model, KEEP)


@pytest.mark.parametrize(
    ("text", "layers"), [("0,1,4", [0, 1, 4]), ("0-3,6", [0, 1, 2, 3, 6]), (" 2 , 5-5", [2, 5]), ("", [])]
)
def test_layers_are_read_from_lists_and_ranges(text, layers):
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["a", "0,,1", "-1", "0-", "1-x", "3-1", "0.5", "0 1"])
def test_what_is_no_list_of_layers_is_refused(text):
    with pytest.raises(ValueError, match="keep_layers is "):
        parse_layers(text)


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ([], "keep_layers is empty"),
        ([0, 5], "keep_layers is 0,5, but the teacher has layers 0 to 4; there is no layer 5"),
        ([0, 2, 2], "names layer 2 twice"),
        ([0, 4, 1], "would change the order of the layers.*Write 0,1,4"),
        ([0, 1, 2, 3, 4], "the teacher itself"),
    ],
)
def test_a_choice_that_makes_no_student_is_refused(keep, said):
    with pytest.raises(ValueError, match=said):
        check_layers(keep, 5)


def test_a_teacher_that_looks_beside_its_text_is_refused(tmp_path):
    sizes = {**SIZES, "num_hidden_layers": 2}
    eyes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Mistral3Config(
        text_config={"model_type": "mistral", **sizes},
        vision_config={"model_type": "pixtral", **eyes, "image_size": 14, "patch_size": 7},
        image_token_index=20,
    )
    Mistral3ForConditionalGeneration(config).save_pretrained(tmp_path / "teacher")
    build_tokenizer().save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"teacher is '.*', a Mistral3Config, which also reads images or sound"):
        write_student(tmp_path / "teacher", [0], tmp_path / "student")
