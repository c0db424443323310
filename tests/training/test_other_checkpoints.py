"""Pairs that are not two causal language models with one tokenizer: a padding token more, a model that could look."""

import pytest
import torch
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2AudioConfig,
    SiglipVisionConfig,
)

from odd_tokenizers import TOOLS_TEMPLATE, tokenizer
from training import tiny
from training.tiny import PROMPTS, build, clone, plain_logp
from tropd.models.hidden_states import language_model_class
from tropd.teacher.vocabulary import own_tokens, vocabulary_disagreement

ROWS = [{"prompt": prompt} for prompt in PROMPTS]


@pytest.fixture
def origin():
    """A model and its tokenizer, whose output layer has a row for each token and no more."""
    made = tokenizer()
    return tiny.llama(1, rows=len(made)), made


def with_padding(model, made, **kind):
    """The model with one more token, as fine-tuning makes it."""
    padded = tokenizer(extra=("[PAD]",), pad_token="[PAD]", **kind)
    student = clone(model)
    student.resize_token_embeddings(len(padded), mean_resizing=False)
    return student, padded


@pytest.mark.parametrize("method", ["opd", "tropd", "gkd"])
def test_a_student_with_a_padding_token_more_learns_from_what_it_came_from(tmp_path, origin, method, caplog):
    teacher, made = origin
    student, padded = with_padding(teacher, made)
    pad = len(made)
    written = [[7, 8, 9, 2], [7, pad, 9, 2]] * 4
    options = {"processing_class": padded, "teacher_processing_class": made}
    trainer = build(
        tmp_path,
        student,
        clone(teacher),
        method,
        rows=ROWS,
        trainer_options=options,
        max_completion_length=6,
        script=lambda contexts: written,
        guidance_schedule="constant" if method == "tropd" else "none",
    )
    assert "'[PAD]' (" in caplog.text and "The teacher cannot score them" in caplog.text
    trainer.train()
    log = trainer.state.log_history[0]
    batch = trainer._buffered_inputs[0]
    whole = batch.rollouts[0]
    expected = plain_logp(teacher, whole.prompt_ids, whole.response)
    assert torch.allclose(batch.signals.teacher_logp[: len(expected)].double(), expected, atol=1e-5)
    if method == "tropd":  # the teacher has written the prefixes, beside padding that it has no embedding for
        assert log["regions/num_guidance"] == 8 * 5 and log["teacher/nonfinite_tokens"] == 0
    else:  # of every second response, all but its first token
        assert log["regions/num_trust"] == 4 * 4 + 4 * 1 and log["teacher/nonfinite_tokens"] == 4 * 3
    assert abs(log["loss"]) < 0.02, "one model, but for a token that it never writes"


def test_padding_inside_the_teachers_padded_rows_is_no_disagreement(origin):
    _, made = origin
    padded = tokenizer(extra=("[PAD]",), pad_token="[PAD]")
    assert vocabulary_disagreement(padded, made, 128) is None
    assert own_tokens(padded, made, 128) == own_tokens(padded, made, len(made)) == ["[PAD]"]
    assert own_tokens(made, padded, 128) == []


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ({"extra": ("abc",)}, "'abc' is text"),
        ({"extra": ("<end>",), "eos_token": "<end>"}, "'<end>' is the beginning, the end, or what is unknown"),
        (
            {"extra": ("<|im|>",), "sep_token": "<|im|>", "template": "<|im|>" + TOOLS_TEMPLATE},
            "is in its chat template",
        ),
        ({"extra": ("[CLS]",), "cls_token": "[CLS]", "begins": "[CLS] "}, "'[CLS]' is put beside every text"),
    ],
)
@pytest.mark.parametrize("rows", [0, 64])
def test_a_token_that_is_read_or_written_is_refused_by_its_name(origin, kind, why, rows):
    _, made = origin
    sentence = vocabulary_disagreement(tokenizer(**kind), made, len(made) + rows)
    assert why in sentence and repr(kind["extra"][0]) in sentence
    assert ("teacher scores only" in sentence) == (rows == 0)


# ---------------------------------------------------------------------- models that could look

LOOKS = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 7}


def that_could_look():
    torch.manual_seed(3)
    text = tiny.llama(0).config.to_dict() | {"model_type": "mistral", "num_key_value_heads": 2, "head_dim": 8}
    looks = {"model_type": "pixtral", "image_size": 14} | LOOKS
    return Mistral3ForConditionalGeneration(
        Mistral3Config(text_config=text, vision_config=looks, image_token_index=60, tie_word_embeddings=False)
    )


@pytest.mark.parametrize("loaded", [True, False])
def test_a_teacher_that_could_look_is_read_on_text(tmp_path, student, loaded):
    teacher = that_could_look()
    teacher.save_pretrained(tmp_path / "teacher")
    tiny.tokenizer().save_pretrained(tmp_path / "teacher")
    given = teacher if loaded else str(tmp_path / "teacher")
    trainer = build(tmp_path, clone(student), given, "opd", script=tiny.replay(tiny.recorded(8)))
    trainer.train()
    batch = trainer._buffered_inputs[0]
    first = batch.rollouts[0]
    expected = plain_logp(teacher, first.prompt_ids, first.response)
    assert torch.allclose(batch.signals.teacher_logp[: len(expected)].double(), expected, atol=1e-5)


def test_a_model_that_writes_no_text_is_refused():
    assert language_model_class(Qwen2AudioConfig(), "teacher is 'x'").__name__ == "AutoModelForMultimodalLM"
    with pytest.raises(ValueError, match=r"^teacher is 'x', which is a siglip_vision_model: .*…ForCausalLM"):
        language_model_class(SiglipVisionConfig(), "teacher is 'x'")
