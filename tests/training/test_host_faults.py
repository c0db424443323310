"""What the host cannot do, or would do without a word: a sentence that names the field, before anything is trained."""

import copy
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
import transformers.trainer as trainer_of_transformers
from transformers import GPT2LMHeadModel, OpenAIGPTConfig, OpenAIGPTLMHeadModel, Trainer
from trl import GRPOTrainer

from training import tiny
from training.tiny import build, clone, config
from tropd.run.costs import num_steps
from tropd.training.checkpointing.final_model import is_missing, make_from
from tropd.training.checkpointing.hub import NotPushed, check_hub
from tropd.training.guards.host_settings import (
    can_checkpoint,
    check_host_settings,
    field_guard,
    settle_checkpointing,
)
from tropd.training.logging import callbacks

HIDDEN = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
ADALORA = peft.AdaLoraConfig(**HIDDEN, init_r=3, target_r=2, total_step=9)
LORA = peft.LoraConfig(**HIDDEN, r=2)

# ---------------------------------------------------------------------- adapters


@pytest.mark.parametrize(
    ("adapter", "why"),
    [
        (ADALORA, "wraps the model's forward"),
        (peft.PolyConfig(**HIDDEN, n_tasks=2, n_skills=2, n_splits=1), "wraps the model's forward"),
        (
            peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=2, adapter_layers=1),
            "wraps the model's forward",
        ),
        (peft.LoraConfig(**HIDDEN, alora_invocation_tokens=[5]), "acts only after its alora_invocation_tokens"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_adapter_that_does_more_than_change_weights_is_refused(tmp_path, pair, adapter, why):
    with pytest.raises(
        ValueError, match=rf"the student's adapter \(peft_config\) is {type(adapter).__name__}, .*{why}"
    ):
        build(tmp_path, *pair, "opd", trainer_options={"peft_config": adapter})


@pytest.mark.parametrize("kind", [peft.PromptTuningConfig, peft.PrefixTuningConfig, peft.PromptEncoderConfig])
def test_a_teacher_with_virtual_tokens_is_refused(tmp_path, pair, kind):
    teacher = peft.get_peft_model(pair[1], kind(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(
        ValueError, match=rf"the teacher's adapter \(peft_config\) is {kind.__name__}, .*3 virtual tokens"
    ):
        build(tmp_path, pair[0], teacher, "opd")
    rows = [{"prompt": prompt, "teacher": "code"} for prompt in tiny.PROMPTS]
    with pytest.raises(ValueError, match=r"the teacher 'math''s adapter"):
        build(tmp_path, pair[0], {"code": clone(pair[0]), "math": teacher}, "opd", rows=rows)


def test_a_teacher_with_adalora_scores_as_the_model_that_it_is(tmp_path, pair):
    torch.manual_seed(0)
    teacher = peft.get_peft_model(clone(pair[1]), ADALORA)
    for name, parameter in teacher.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter.data, std=0.3)
    context, response = tiny.ids("ab="), [5, 6, 7]
    expected = tiny.plain_logp(teacher.eval(), context, response)
    assert (expected - tiny.plain_logp(pair[1], context, response)).abs().max() > 0.01
    trainer = build(tmp_path, pair[0], teacher, "opd")
    scores = trainer.teacher.score([context], [response], [[True] * 3], pad_id=0)
    torch.testing.assert_close(scores.logp.double(), expected, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------- activation checkpointing


def gpt(seed):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    return OpenAIGPTLMHeadModel(OpenAIGPTConfig(**sizes, bos_token_id=1, eos_token_id=2))


def test_a_student_without_activation_checkpointing_trains_without_it_and_that_is_said(tmp_path, caplog):
    script = tiny.replay(tiny.recorded(8))
    trainer = build(tmp_path, gpt(1), gpt(2), "opd", script=script, gradient_checkpointing=True)
    assert "a OpenAIGPTLMHeadModel, whose architecture does not support activation checkpointing" in caplog.text
    assert trainer.args.gradient_checkpointing is False
    trainer.train()
    assert trainer.state.global_step == 1
    asked = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(
        ValueError, match=r"gradient_checkpointing_kwargs is \{'use_reentrant': True\}, but the student"
    ):
        build(tmp_path, gpt(1), gpt(2), "opd", **asked)


def test_whoever_asked_for_activation_checkpointing_is_refused_and_nobody_else(pair):
    args = SimpleNamespace(gradient_checkpointing=True)
    asked = {"gradient_checkpointing": True}
    with pytest.raises(ValueError, match=r"gradient_checkpointing is True, but .*Set gradient_checkpointing: false"):
        settle_checkpointing(args, OpenAIGPTLMHeadModel, asked)
    assert settle_checkpointing(args, GPT2LMHeadModel, asked) is None and args.gradient_checkpointing
    assert can_checkpoint(pair[0]) and not can_checkpoint(gpt(1))
    unmarked = torch.nn.Linear(1, 1)
    unmarked.supports_gradient_checkpointing = True  # says so, and no layer of it does
    assert not can_checkpoint(unmarked)


# ---------------------------------------------------------------------- endings and padding


def test_a_student_that_could_not_end_or_be_padded_is_refused(tmp_path, pair):
    bare = copy.deepcopy(tiny.tokenizer())
    bare.pad_token = bare.eos_token = None
    with pytest.raises(ValueError, match=r"\(processing_class\) has neither a padding nor an end-of-sequence token"):
        build(tmp_path, *pair, "opd", trainer_options={"processing_class": bare})
    endless, student = copy.deepcopy(tiny.tokenizer()), clone(pair[0])
    endless.eos_token = student.config.eos_token_id = student.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match=r"the student has no end-of-sequence token: .*Set the tokenizer's eos_token"):
        build(tmp_path, student, pair[1], "opd", trainer_options={"processing_class": endless})


# ---------------------------------------------------------------------- fields of the host


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"seed": -1}, "seed is -1; a seed is a whole number from 0"),
        ({"data_seed": 2**32}, "data_seed is 4294967296; a seed"),
        ({"num_train_epochs": -1}, "num_train_epochs is -1; use a number above 0"),
        ({"num_train_epochs": float("inf")}, "num_train_epochs is inf; "),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1.0; "),
        ({"max_grad_norm": float("nan")}, "max_grad_norm is nan; it takes a finite number"),
        ({"weight_decay": float("nan")}, "weight_decay is nan; "),
        ({"adam_beta2": 1.5}, r"adam_beta2 is 1.5; .*\[0, 1\)"),
        ({"adam_epsilon": -1e-8}, "adam_epsilon is -1e-08; "),
        ({"optim_args": "flux"}, "optim_args is 'flux'; write it like eps=1e-6"),
        ({"warmup_steps": float("nan")}, "warmup_steps is nan; "),
        ({"save_strategy": "steps", "save_steps": 0}, "save_steps is 0; use a number of steps"),
        ({"save_strategy": "steps", "save_steps": float("nan")}, "save_steps is nan; "),
        ({"logging_steps": -5}, "logging_steps is -5; "),
        ({"save_total_limit": 0}, "save_total_limit is 0; keep at least 1"),
        ({"steps_per_generation": 0}, "steps_per_generation is 0; use at least 1"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size is 0; "),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers is -1; "),
        (
            {"dataloader_persistent_workers": True},
            "dataloader_persistent_workers is True, but dataloader_num_workers is 0",
        ),
        ({"remove_unused_columns": True}, "remove_unused_columns is True, .*teacher responses"),
        (
            {"accelerator_config": {"dispatch_batches": True}},
            "accelerator_config has dispatch_batches: True, .*Remove it",
        ),
        ({"accelerator_config": {"split_batches": True}}, "accelerator_config has split_batches: True, "),
        (
            {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 4}}},
            "accelerator_config has gradient_accumulation_kwargs .*Set gradient_accumulation_steps",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_field_that_cannot_be_is_refused_by_its_name(tmp_path, settings, said):
    with pytest.raises(ValueError, match=said):
        check_host_settings(config(tmp_path, "opd", **settings))


def test_batches_of_uneven_number_are_refused_where_there_are_several_processes(tmp_path, monkeypatch):
    args = config(tmp_path, "opd", accelerator_config={"even_batches": False})
    check_host_settings(args)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ValueError, match="accelerator_config has even_batches: False, but a process without a last batch"
    ):
        check_host_settings(args)


def test_a_package_that_is_not_there_is_refused_by_its_field_when_the_configuration_is_made(tmp_path):
    with pytest.raises(ValueError, match=r"deepspeed is 'zero3.json', but the package deepspeed is not installed"):
        config(tmp_path, "opd", deepspeed="zero3.json")


def test_every_default_and_every_edge_is_allowed(tmp_path):
    check_host_settings(config(tmp_path, "opd"))
    edges = {"seed": 2**32 - 1, "max_grad_norm": 0, "adam_beta1": 0.0, "weight_decay": 0.0, "save_total_limit": 1}
    check_host_settings(config(tmp_path, "opd", save_strategy="steps", save_steps=0.5, logging_steps=0.1, **edges))


@pytest.mark.parametrize(("epochs", "steps"), [(1e-9, 1), (0.5, 1), (0.6, 2), (1.5, 3)])
def test_a_step_that_an_epoch_has_begun_is_taken_and_counted_beforehand(tmp_path, pair, epochs, steps):
    """Two steps are an epoch of the four prompts."""
    trainer = build(tmp_path, *pair, "opd", script=tiny.replay(tiny.recorded(8)), max_steps=-1, num_train_epochs=epochs)
    trainer.train()
    assert trainer.state.global_step == steps == num_steps(trainer.args, 4)


@pytest.mark.parametrize("field", ["model_init_kwargs", "teacher_model_init_kwargs"])
@pytest.mark.parametrize(
    ("inside", "key"), [({"flux": 1}, "flux"), ({"num_hidden_layers": "two"}, "num_hidden_layers")]
)
def test_a_key_that_a_model_does_not_take_is_named_with_its_field(tmp_path, pair, field, inside, key):
    pair[1].save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    models = (str(tmp_path / "model"), pair[0]) if field == "model_init_kwargs" else (pair[0], str(tmp_path / "model"))
    with pytest.raises(
        ValueError, match=rf"^{field} has '{key}', which is not accepted there \(.*Remove or correct it"
    ):
        build(tmp_path / "out", *models, "opd", **{field: inside})
    with pytest.raises(ValueError, match=rf"^{field} is \{{'device_map': 3\}}, and a model cannot be loaded with that"):
        build(tmp_path / "out", *models, "opd", **{field: {"device_map": 3}})
    with pytest.raises(ValueError, match=rf"^{field} has 'output_loading_info'"):
        build(tmp_path / "out", *models, "opd", **{field: {"output_loading_info": True}})


def test_what_the_trainer_itself_does_not_take_is_named_with_its_field_too(tmp_path, pair):
    unknown = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"flux": 1}}
    trainer = build(tmp_path, *map(clone, pair), "opd", script=tiny.replay(tiny.recorded(8)), **unknown)
    with pytest.raises(ValueError, match=r"^gradient_checkpointing_kwargs has 'flux', which is not accepted there"):
        trainer.train()
    schedule = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"flux": 1}}
    trainer = build(tmp_path, *pair, "opd", script=tiny.replay(tiny.recorded(8)), **schedule)
    with pytest.raises(ValueError, match=r"^lr_scheduler_kwargs has 'flux', which is not accepted there"):
        trainer.train()


def test_an_error_that_no_field_is_to_blame_for_stays_as_it_is():
    with (
        pytest.raises(TypeError, match="unexpected keyword argument 'flux'"),
        field_guard({"seed": 1, "other": {"a": 1}}),
    ):
        raise TypeError("f() got an unexpected keyword argument 'flux'")
    lost = pytest.raises(ValueError, match=r"^fsdp_config is 'none.json', which cannot be read")
    with lost, field_guard({"seed": 1, "fsdp_config": "none.json"}):
        Path("none.json").read_text()


def test_a_folder_with_a_model_and_an_adapter_is_refused(tmp_path, pair):
    pair[1].save_pretrained(tmp_path / "both")
    peft.get_peft_model(clone(pair[1]), LORA).save_pretrained(tmp_path / "both")
    for role, models in (
        ("student", (str(tmp_path / "both"), pair[0])),
        ("teacher", (pair[0], str(tmp_path / "both"))),
    ):
        with pytest.raises(
            ValueError, match=rf"{role} is '.*both', which holds a model and an adapter.*remove adapter_con"
        ):
            build(tmp_path / "out", *models, "opd")


# ---------------------------------------------------------------------- the Hub


def test_a_token_of_the_hub_is_in_no_file_and_in_every_copy(tmp_path, pair):
    args = config(tmp_path, "opd", hub_token="a secret")
    for twin in (copy.copy(args), copy.deepcopy(args)):
        assert twin.hub_token == "a secret" and twin.to_dict() == args.to_dict()
    trainer = build(
        tmp_path, *pair, "opd", script=tiny.replay(tiny.recorded(8)), save_final_model=True, hub_token="a secret"
    )
    trainer.train()
    assert trainer.args.hub_token == "a secret"
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert tmp_path / "training_args.bin" in written
    assert not [path for path in written if b"a secret" in path.read_bytes()]
    assert torch.load(tmp_path / "training_args.bin", weights_only=False).seed == args.seed


def test_without_a_network_the_hub_is_a_sentence(tmp_path, pair):
    args = config(tmp_path, "opd", push_to_hub=True)
    for ask in (lambda: check_hub(args), lambda: build(tmp_path, *pair, "opd", push_to_hub=True)):
        with pytest.raises(
            ValueError, match=r"push_to_hub is True, but the Hub cannot be written to \(.*push_to_hub: false"
        ):
            ask()
    check_hub(config(tmp_path, "opd"))


def test_the_final_model_is_pushed_once_when_it_is_whole_and_outlives_a_hub_that_is_gone(tmp_path, pair, monkeypatch):
    pushed = []

    def push(self, commit_message, revision):
        pushed.append(sorted(path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*.safetensors")))
        raise ConnectionError("no route to the Hub")

    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self: None)
    monkeypatch.setattr(GRPOTrainer, "push_to_hub", push)
    trainer = build(
        tmp_path, *pair, "opd", script=tiny.replay(tiny.recorded(8)), push_to_hub=True, save_final_model=True
    )
    with pytest.raises(
        NotPushed,
        match=r"the final model is in .*could not be pushed to the Hub \(ConnectionError: no route.*hf upload",
    ):
        trainer.train()
    assert pushed == [["model.safetensors"]] and (tmp_path / "README.md").is_file()


def test_a_push_on_the_way_that_fails_is_told_and_its_copy_is_no_final_model(tmp_path, pair, monkeypatch, caplog):
    """What a push copies into the run's folder is not its end: a run killed before that has no final model."""

    def upload(**asked):
        job = Future()
        job.set_exception(ConnectionError("no route to the Hub"))
        return job

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self: setattr(self, "push_in_progress", None))
    monkeypatch.setattr(trainer_of_transformers, "hf_api", lambda: SimpleNamespace(upload_folder=upload))
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "save_final_model": True}
    trainer = build(tmp_path, *pair, "opd", script=tiny.replay(tiny.recorded(8)), push_to_hub=True, **saving)
    trainer.hub_model_id = "somebody/something"
    monkeypatch.setattr(callbacks, "check_weights", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    told = [record.getMessage() for record in caplog.records if "the push of step" in record.getMessage()]
    assert [text.split("(")[0] for text in told] == ["the push of step 1 to the Hub failed "]
    trainer.pushes.tell_failed()
    assert (
        "the push of step 2 to the Hub failed (ConnectionError: no route to the Hub); the run continues" in caplog.text
    )
    last, weights = tmp_path / "checkpoint-2", tmp_path / "model.safetensors"
    assert weights.read_bytes() == (last / "model.safetensors").read_bytes(), "the push has copied it"
    assert is_missing(tmp_path, last)
    make_from(last, tmp_path)
    assert not is_missing(tmp_path, last) and is_missing(tmp_path, tmp_path / "checkpoint-1")
    weights.write_bytes((tmp_path / "checkpoint-1/model.safetensors").read_bytes())
    assert is_missing(tmp_path, last), "as long as it is, and another"
