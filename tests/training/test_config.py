"""A configuration that cannot work is refused in a sentence: the field, its value, why, and what to type instead."""

import math

import pytest
from trl import GRPOConfig

from training.tiny import build, clone, config
from tropd import METHODS, TrOPDConfig
from tropd.training.method_settings import MethodSettings


def refused(match: str, method: str = "tropd", **settings):
    with pytest.raises(ValueError, match=match):
        config("unused", method, **settings)


def test_an_unknown_method_is_answered_with_the_nearest():
    refused("method is 'trodp', which is unknown .did you mean 'tropd'", "trodp")
    refused("method is 'opd2'.*did you mean 'opd'.*Known: opd, gkd", "opd2")


@pytest.mark.parametrize(
    ("method", "settings", "reason"),
    [
        ("opd", {"fkl_top_k": 8}, "it does not use the teacher's top-k"),
        ("opd", {"guidance_beta": 0.1}, "it has no guidance; set `guidance_schedule` first"),
        ("gkd", {"ratio_clip": 0.2}, "it has no policy gradient"),
        ("tropd", {"outlier_tau": -1.0}, "only the `hard` gate and the outlier treatments `clip` and `rkl_direct` read it"),
        ("tropd", {"jsd_beta": 0.5}, "it has no Jensen-Shannon mixture"),
        ("mask_outlier", {"switch_at": 0.5}, "it has one phase"),
    ],
)
def test_a_setting_without_effect_is_refused_with_the_reason(method, settings, reason):
    (name,) = settings
    refused(rf"{name} is .*no effect under method '{method}': {reason}", method, **settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"gate": "bernouli"}, "gate is 'bernouli' .did you mean 'bernoulli'"),
        ({"fkl_top_k": 0}, "fkl_top_k is 0; it must be a whole number of at least 1"),
        ({"guidance_beta": -0.1}, "guidance_beta is -0.1; it must be at least 0"),
        ({"guidance_min_tail": 0}, "guidance_min_tail is 0; the student needs at least 1 token"),
        ({"collapse_share": 0.0}, "collapse_share is 0.0; it is a share of rollouts"),
        ({"collapse_patience": 0}, "collapse_patience is 0; use at least 1, or None to switch off"),
        ({"reward_mixing_weight": -1.0}, "reward_mixing_weight is -1.0; rewards are maximised"),
        ({"rollout_log_steps": -1}, "rollout_log_steps is -1; use 0 for never"),
        ({"teacher_batch_size": 0}, "teacher_batch_size is 0; use at least 1"),
        ({"rollout_batch_size": 0}, "rollout_batch_size is 0; use at least 1, or None for all rollouts at once"),
        ({"rollout_batch_size": 4, "addressed_sampling": False}, "rollout_batch_size is 4, but .*no effect"),
        ({"rollout_batch_size": 4, "use_vllm": True}, "rollout_batch_size is 4, but .*vLLM .*no effect"),
    ],
)
def test_a_value_out_of_range_is_refused(settings, sentence):
    refused(sentence, **settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss_type", "grpo"),
        ("epsilon", 0.1),
        ("epsilon_high", 0.3),
        ("delta", 2.0),
        ("importance_sampling_level", "sequence"),
        ("top_entropy_quantile", 0.2),
        ("entropy_coef", 0.1),
        ("beta", 0.04),
        ("sync_ref_model", True),
    ],
)
def test_settings_of_grpos_own_loss_are_refused(name, value):
    refused(rf"{name} is {value!r}, but it belongs to GRPO's loss and has no effect here", **{name: value})


def test_a_generation_batch_that_would_split_an_optimiser_step_is_refused():
    refused(
        r"steps_per_generation is 3, not a multiple of gradient_accumulation_steps \(2\)",
        steps_per_generation=3,
        gradient_accumulation_steps=2,
    )


def test_a_single_sequence_is_refused():
    refused(
        "a step of one prompt with num_generations 1 has a single sequence",
        num_generations=1,
        per_device_train_batch_size=1,
    )


def test_a_reward_weight_without_rewards_is_refused(tmp_path, student, teacher):
    with pytest.raises(ValueError, match=r"reward_mixing_weight is 0\.5, but there are no rewards to mix in; give"):
        build(tmp_path, clone(student), clone(teacher), reward_mixing_weight=0.5)


def test_keyword_arguments_for_a_teacher_that_is_loaded_already_are_refused(tmp_path, student, teacher):
    with pytest.raises(ValueError, match="teacher_model_init_kwargs is set, but the teacher is already loaded"):
        build(tmp_path, clone(student), clone(teacher), teacher_model_init_kwargs={"dtype": "float32"})


def test_a_student_that_is_the_same_object_as_its_teacher_is_refused(tmp_path, student):
    """The teacher is frozen; a student frozen with it would train for days without moving."""
    model = clone(student)
    with pytest.raises(ValueError, match="student and teacher are the same object"):
        build(tmp_path, model, model)


def test_a_part_left_out_keeps_the_methods_own_value_and_a_part_given_replaces_it():
    assert config("unused").resolved_method() == METHODS["tropd"]
    changed = config("unused", gate="hard", outlier_tau=-math.inf, fkl_top_k=7).resolved_method()
    assert (changed.gate, changed.outlier_tau, changed.fkl_top_k) == ("hard", -math.inf, 7)
    assert changed.guidance_schedule == "cosine"


def test_the_papers_settings_are_the_defaults():
    defaults = TrOPDConfig("unused", use_cpu=True, bf16=False)
    assert (defaults.method, defaults.learning_rate, defaults.lr_scheduler_type) == ("tropd", 5e-6, "constant")
    assert (defaults.weight_decay, defaults.num_generations, defaults.temperature) == (0.1, 4, 1.0)
    assert (defaults.max_grad_norm, defaults.warmup_steps, defaults.top_p) == (1.0, 0, 1.0)


@pytest.mark.parametrize(
    ("settings", "steps", "rows"),
    [
        ({"gradient_accumulation_steps": 2}, 2, 16),
        ({"steps_per_generation": 4, "gradient_accumulation_steps": 2}, 4, 32),
        ({"generation_batch_size": 24}, 3, 24),
    ],
)
@pytest.mark.parametrize("num_generations", [1, 4])
def test_batches_are_sized_as_in_trl_with_single_rollouts_too(settings, steps, rows, num_generations):
    made = config("unused", num_generations=num_generations, **settings)
    assert (made.steps_per_generation, made.generation_batch_size) == (steps, rows)
    assert made.num_generations == num_generations and made.num_generations_eval is None


def test_dictionaries_may_be_given_as_json():
    made = config("unused", teacher_chat_template_kwargs='{"enable_thinking": true}')
    assert made.teacher_chat_template_kwargs == {"enable_thinking": True}


def test_the_help_of_every_field_of_ours_says_something():
    ours = {name for name in TrOPDConfig.__dataclass_fields__ if name not in GRPOConfig.__dataclass_fields__}
    assert len(ours) > 20
    assert all(TrOPDConfig.__dataclass_fields__[name].metadata.get("help") for name in ours)
    assert all(f"{name}:" in MethodSettings.__doc__ for name in ours), "the docstring explains every field"
