"""Rollouts are drawn from the softmax that is scored, whatever a model's generation_config.json holds."""

import pytest
import torch
from transformers import GenerationConfig

from training import tiny
from tropd import TrOPDConfig
from tropd.atomic_files import read_jsonl
from tropd.models.sampling import IDS, as_asked, sample

HOSTILE = {
    "num_beams": 4,
    "num_return_sequences": 2,
    "temperature": 0.2,
    "top_k": 1,
    "top_p": 0.1,
    "min_p": 0.9,
    "top_h": 0.1,
    "typical_p": 0.1,
    "epsilon_cutoff": 0.4,
    "eta_cutoff": 0.4,
    "repetition_penalty": 9.0,
    "encoder_repetition_penalty": 9.0,
    "no_repeat_ngram_size": 1,
    "bad_words_ids": [[5], [6], [7]],
    "sequence_bias": [[[5], 50.0]],
    "suppress_tokens": [5, 6, 7, 8],
    "begin_suppress_tokens": [5, 6, 7, 8],
    "forced_bos_token_id": 9,
    "forced_eos_token_id": 2,
    "exponential_decay_length_penalty": [1, 9.0],
    "guidance_scale": 5.0,
    "min_length": 30,
    "min_new_tokens": 12,
    "max_new_tokens": 1,
    "max_length": 3,
    "max_time": 1e-9,
    "stop_strings": ["a"],
    "penalty_alpha": 0.6,
    "num_beam_groups": 2,
    "diversity_penalty": 1.0,
    "length_penalty": 9.0,
    "early_stopping": True,
    "prompt_lookup_num_tokens": 3,
    "constraints": [],
    "force_words_ids": [[5]],
    "dola_layers": "low",
    "watermarking_config": {"greenlist_ratio": 0.5, "bias": 9.0},
    "use_cache": False,
    "prefill_chunk_size": 2,
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_attentions": True,
    "output_hidden_states": True,
    "token_healing": True,
    "remove_invalid_values": True,
    "renormalize_logits": True,
    "do_sample": False,
    "cache_implementation": "static",
}
"""A value of every field that changes what is drawn, or how; the rest of the release's fields are set to 1 below."""

FIELDS = [
    name for name in vars(GenerationConfig()) if not name.startswith("_") and name not in (*IDS, "transformers_version")
]


def rollouts(tmp_path, **settings):
    student = tiny.llama(seed=1)
    for name, value in settings.items():
        setattr(student.generation_config, name, value)
    logged = {"rollout_log_steps": 1, "rollouts_per_log": 8}
    tiny.build(tmp_path, student, tiny.llama(seed=2), "opd", max_steps=1, **logged).train()
    assert {name: getattr(student.generation_config, name) for name in settings} == settings, "the user's file stays"
    return [read["response"] for read in read_jsonl(tmp_path / "rollouts/step-000001.jsonl")]


def test_no_field_of_a_students_generation_config_reaches_its_rollouts(tmp_path):
    """Every field of the installed release at once: a new one is here without anybody's doing."""
    hostile = {name: HOSTILE.get(name, 1) for name in FIELDS}
    assert rollouts(tmp_path / "hostile", **hostile) == rollouts(tmp_path / "plain")


@pytest.mark.parametrize("name", ["top_k", "suppress_tokens", "num_beams", "repetition_penalty", "stop_strings"])
def test_no_field_of_a_teachers_generation_config_reaches_what_it_writes(name):
    def written(value):
        teacher = tiny.llama(seed=2).eval()
        if value is not None:
            setattr(teacher.generation_config, name, value)
        torch.manual_seed(0)
        return sample(teacher, [[5, 6], [7]], max_new_tokens=9, eos_ids=[2], pad_id=0)

    assert written(HOSTILE[name]) == written(None)


def test_ids_stay_and_the_models_own_settings_come_back_after_a_failure():
    model = tiny.llama(seed=1)
    own = model.generation_config
    own.top_k = 7

    def fail():
        with as_asked(model):
            assert model.generation_config.top_k is None and model.generation_config.eos_token_id == own.eos_token_id
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert model.generation_config is own


@pytest.mark.parametrize("name", sorted(HOSTILE.keys() - {"use_cache", "prefill_chunk_size", "cache_implementation"}))
def test_generation_kwargs_that_reshape_the_softmax_are_refused_by_name(name, tmp_path):
    if name in ("do_sample", "renormalize_logits") or name not in vars(GenerationConfig()):
        pytest.skip("leaves the distribution alone, or is no field of this release")
    with pytest.raises(ValueError, match=rf"^generation_kwargs has '{name}' "):
        TrOPDConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", generation_kwargs={name: HOSTILE[name]})


def test_noise_on_the_embeddings_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^neftune_noise_alpha is 5"):
        TrOPDConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", neftune_noise_alpha=5)
