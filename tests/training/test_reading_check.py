"""What is read of a model is what the model says of itself, over the families people distil; else it is refused."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from training import tiny, zoo
from tropd.models.hidden_states import expose_hidden_states
from tropd.training.guards import reading
from tropd.training.guards.reading import _agreeing, _length, _read, _some_tokens, silence

IDS = _some_tokens(64, "cpu")


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_a_family_is_read_as_it_computes_and_is_quiet_in_training_mode(family):
    model = zoo.made(family)
    own = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=False).logits[0].log_softmax(-1)
    expose_hidden_states(model)
    read = _agreeing(model, model, IDS, "the student")
    torch.testing.assert_close(read, own, rtol=0, atol=2e-5)
    for module in model.modules():  # what TRL does
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    silence(model)
    model.train()
    torch.testing.assert_close(_read(model, IDS), read, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", ["ModernBertDecoder", "Llama4", "Llama"])
def test_gradients_through_either_way_of_reading_are_the_models_own(family):
    gradients = []
    for exposed in (False, True):
        model = zoo.made(family)
        if exposed:
            expose_hidden_states(model)
            _agreeing(model, model, IDS, "the student")
            logps = model(
                input_ids=IDS,
                attention_mask=torch.ones_like(IDS),
                on_hidden=lambda hidden, head: head.logits(hidden.flatten(0, -2)).log_softmax(-1),
            )
        else:
            logps = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=False).logits[0].log_softmax(-1)
        (-logps[:, 5].mean()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, ours = gradients
    assert plain.keys() == ours.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5)


class Divided(LlamaForCausalLM):
    """Logits by a learned scale, as nobody's configuration says."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 0.7
        return output


class Unpadded(LlamaForCausalLM):
    """Rows of padding in the output layer are cut off by its forward."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits[..., :-3]
        return output


class Shifted(LlamaForCausalLM):
    """A bias over the vocabulary that is no part of the layer."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + torch.arange(output.logits.shape[-1]) / 9
        return output


@pytest.mark.parametrize("kind", [Divided, Unpadded, Shifted])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_model_that_does_something_else_to_its_logits_is_refused_before_training(kind, role, tmp_path):
    models = {"student": tiny.llama(seed=1), "teacher": tiny.llama(seed=2)}
    models[role].__class__ = kind
    trainer = tiny.build(tmp_path, models["student"], models["teacher"], "opd", max_steps=1)
    with pytest.raises(ValueError, match=rf"^the {role} \({kind.__name__}\) gives log-probabilities that differ"):
        trainer.train()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_is_no_difference_and_another_scale_of_the_logits_is(dtype):
    model, divided = (tiny.llama(seed=1).to(dtype).eval() for _ in range(2))
    divided.__class__ = Divided
    for one in (model, divided):
        expose_hidden_states(one)
    _agreeing(model, model, IDS, "the student")
    with pytest.raises(ValueError, match="nats apart"):
        _agreeing(divided, divided, IDS, "the student")


def test_noise_that_nothing_switches_off_is_refused_by_the_setting_that_adds_it(tmp_path):
    student = tiny.llama(seed=1)
    student.config.attention_dropout = 0.25

    def noisy(module, args, output):
        drop = nn.functional.dropout(output, student.config.attention_dropout, module.training)
        return drop

    student.model.layers[0].mlp.register_forward_hook(noisy)
    trainer = tiny.build(tmp_path, student, tiny.llama(seed=2), "opd", max_steps=1)
    with pytest.raises(ValueError, match=r"in training mode.*model_init_kwargs: \{attention_dropout: 0.0\}"):
        trainer.train()
    trainer = tiny.build(tmp_path, student, tiny.llama(seed=2), "opd", max_steps=1, disable_dropout=False)
    trainer.train()  # asked for


@pytest.mark.parametrize("draw", [lambda: float(torch.rand(())), random.random, np.random.random])
def test_noise_that_one_pass_in_five_shows_is_refused(draw, tmp_path):
    student = tiny.llama(seed=1)

    def rarely(module, args, output):
        return output * (1.5 if module.training and draw() < 0.2 else 1.0)

    student.model.layers[0].mlp.register_forward_hook(rarely)
    for seed in range(6):
        trainer = tiny.build(tmp_path, student, tiny.llama(seed=2), "opd", max_steps=1, seed=seed)
        with pytest.raises(ValueError, match="in training mode"):
            trainer.train()


def test_a_model_that_draws_and_makes_nothing_of_it_has_no_noise_and_generators_stay_as_they_were(tmp_path):
    student, passes = tiny.llama(seed=1), []

    def layerdrop_of_0(module, args):
        passes.append(float(torch.rand(())) + random.random() + np.random.random() < 0.0)

    student.model.layers[0].mlp.register_forward_pre_hook(layerdrop_of_0)
    trainer = tiny.build(tmp_path, student, tiny.llama(seed=2), "opd", max_steps=1)
    read = _read(trainer.model.train(), IDS)
    before = torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())
    reading._check_quiet(trainer, trainer.model, IDS, read)
    assert len(passes) == 1 + 2 + reading.MORE_PASSES
    assert before == (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()))


def test_noise_that_begins_at_a_position_is_refused(tmp_path):
    student = tiny.llama(seed=1)

    def noisy(module, args, output):
        late = nn.functional.dropout(output[:, 14:], 0.3, module.training)
        return torch.cat([output[:, :14], late], dim=1)

    student.model.layers[0].mlp.register_forward_hook(noisy)
    trainer = tiny.build(tmp_path, student, tiny.llama(seed=2), "gkd", max_steps=1, max_completion_length=20)
    with pytest.raises(ValueError, match="in training mode"):
        trainer.train()


class Late(LlamaForCausalLM):
    """Logits by another scale in long rows."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        if output.logits is not None and output.logits.shape[1] > 14:
            output.logits = output.logits * 0.5
        return output


def test_a_teacher_with_another_scale_in_long_rows_is_refused(tmp_path):
    teacher = tiny.llama(seed=2)
    teacher.__class__ = Late
    trainer = tiny.build(tmp_path, tiny.llama(seed=1), teacher, "opd", max_steps=1, max_completion_length=20)
    with pytest.raises(ValueError, match=r"^the teacher \(Late\) gives log-probabilities that differ"):
        trainer.train()


def test_no_more_is_read_than_a_model_has_positions(tmp_path):
    trainer = tiny.build(tmp_path, tiny.llama(seed=1), tiny.llama(seed=2), "opd", max_steps=1)
    trainer.model.config.max_position_embeddings, lengths = 128, []
    for budget in (20, 100, 10_000):
        trainer.max_completion_length = budget
        lengths.append(_length(trainer, trainer.model))
    assert lengths == [32, 112, 128]
