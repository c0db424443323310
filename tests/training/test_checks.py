"""What a trainer refuses: adapters that shift tokens, a teacher that would be trained, and ways of sharding."""

from types import SimpleNamespace

import pytest
import torch
from peft import (
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch import nn
from trl import GRPOConfig

from training import tiny
from training.tiny import largest_difference, recorded, replay, weights_of
from tropd import TrOPDTrainer
from tropd.objective.methods import METHODS
from tropd.training.distributed.sharding import shards_teacher
from tropd.training.guards.arguments import check_host_model


def lora():
    return LoraConfig(r=2, target_modules=["q_proj"])


# ---------------------------------------------------------------------- adapters


@pytest.mark.parametrize("kind", [PromptTuningConfig, PromptEncoderConfig, PrefixTuningConfig])
@pytest.mark.parametrize("wrapped", [False, True])
def test_an_adapter_of_virtual_tokens_is_refused(tmp_path, kind, wrapped):
    student, adapter = tiny.llama(1), kind(task_type="CAUSAL_LM", num_virtual_tokens=3)
    options = {} if wrapped else {"peft_config": adapter}
    with pytest.raises(
        ValueError, match=rf"adapter \(peft_config\) is {kind.__name__}, .*puts 3 virtual tokens before .*LoraConfig\."
    ):
        tiny.build(
            tmp_path, get_peft_model(student, adapter) if wrapped else student, tiny.llama(2), trainer_options=options
        )


def test_one_model_with_an_adapter_given_twice_is_refused(tmp_path):
    model = get_peft_model(tiny.llama(1), lora())
    with pytest.raises(ValueError, match=r"the same PeftModel\. .*adapter as peft_config; or load the teacher"):
        tiny.build(tmp_path, model, model, "opd")


# ---------------------------------------------------------------------- weights that both have


def test_a_teacher_that_is_the_base_of_the_students_adapter_is_refused(tmp_path):
    student = get_peft_model(tiny.llama(1), lora())
    trained = [name for name, p in student.named_parameters() if p.requires_grad]
    with pytest.raises(
        ValueError, match=r"teacher_model shares \d+ of its \d+ weights with the student \(.*peft_config"
    ):
        tiny.build(tmp_path, student, student.get_base_model(), "opd")
    assert trained and trained == [name for name, p in student.named_parameters() if p.requires_grad]


def test_a_teacher_with_the_students_embedding_is_refused(tmp_path):
    student, teacher = tiny.llama(1), tiny.llama(2)
    teacher.set_input_embeddings(student.get_input_embeddings())
    with pytest.raises(ValueError, match=r"shares 1 of its 21 weights .* \(model.embed_tokens.weight, …\)"):
        tiny.build(tmp_path, student, teacher, "opd")
    teacher.set_input_embeddings(nn.Embedding.from_pretrained(student.get_input_embeddings().weight.data))
    with pytest.raises(ValueError, match="shares 1 of its"):  # another parameter over the same memory
        tiny.build(tmp_path, student, teacher, "opd")


def test_the_base_of_the_students_own_adapter_may_teach(tmp_path):
    model = tiny.llama(1)
    trainer = tiny.build(
        tmp_path, model, model, "opd", script=replay(recorded(8)), trainer_options={"peft_config": lora()}
    )
    before = weights_of(trainer.model)
    trainer.train()
    assert trainer.shares_base and largest_difference(weights_of(trainer.model), before) > 0


# ---------------------------------------------------------------------- ways of sharding


def host(method="opd", *, fsdp=None, zero=None, shard_teacher=True, shares_base=False, served=False):
    """What is asked of a built trainer whose student FSDP of a version, or DeepSpeed of a stage, is to shard."""
    state = SimpleNamespace(
        fsdp_plugin=None if fsdp is None else SimpleNamespace(fsdp_version=fsdp),
        deepspeed_plugin=None if zero is None else SimpleNamespace(zero_stage=zero),
    )
    return SimpleNamespace(
        _is_vlm=False,
        aux_loss_enabled=False,
        model=tiny.llama(1),
        method=METHODS[method],
        args=SimpleNamespace(method=method, shard_teacher=shard_teacher),
        accelerator=SimpleNamespace(state=state),
        is_fsdp_enabled=fsdp is not None,
        is_deepspeed_enabled=zero is not None,
        shares_base=shares_base,
        teachers_elsewhere=served,
    )


@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        ({"fsdp": 1}, r"^FSDP version 1 hides the output layer .*Set fsdp_version: 2"),
        (
            {"method": "gkd", "fsdp": 2},
            r"^method 'gkd' reads .* sharded\. With FSDP set shard_teacher: false",
        ),
        ({"method": "gkd", "zero": 3}, r"^method 'gkd' reads the teacher's output layer"),
        ({"method": "gkd", "fsdp": 2, "shares_base": True}, r"^method 'gkd' reads the teacher's output layer"),
        ({"zero": 3, "shard_teacher": False}, r"^shard_teacher is False, but DeepSpeed ZeRO-3 shards every model"),
        (
            {"fsdp": 2, "shard_teacher": False, "shares_base": True},
            r"^shard_teacher is False, but the teacher is the student's own base, which FSDP2 shards",
        ),
    ],
)
def test_what_sharding_cannot_carry_is_refused(kind, refused):
    with pytest.raises(ValueError, match=refused):
        check_host_model(host(**kind))


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"fsdp": 2},
        {"fsdp": 2, "shares_base": True},
        {"fsdp": 2, "shard_teacher": False},
        {"zero": 3},
        {"zero": 2, "shard_teacher": False},
        {"method": "gkd", "fsdp": 2, "shard_teacher": False},
        {"method": "gkd", "zero": 2},
        {"zero": 3, "shard_teacher": False, "served": True},
    ],
)
def test_the_others_are_taken(kind):
    check_host_model(host(**kind))


def test_a_teacher_behind_a_server_is_not_sharded():
    assert [shards_teacher(host(fsdp=2, served=served)) for served in (False, True)] == [True, False]


@pytest.mark.parametrize(
    ("column", "why"),
    [
        ("prompts", "TRL passes something else to reward functions under this name"),
        ("completion_ids", "TRL passes something else to reward functions under this name"),
        ("images", "TRL would treat it as images"),
    ],
)
def test_a_column_by_a_name_of_the_hosts_is_refused(tmp_path, column, why):
    rows = [{"prompt": prompt, column: "x"} for prompt in tiny.PROMPTS]
    with pytest.raises(ValueError, match=rf"has a column '{column}', but {why}.*rename_column\('{column}'"):
        tiny.build(tmp_path, tiny.llama(1), tiny.llama(2), "opd", rows=rows)


@pytest.mark.parametrize("role", ["model", "teacher_model"])
@pytest.mark.parametrize("given", [None, 5, "", tiny.tokenizer(), torch.nn.Linear(2, 2), type("Class", (), {})])
def test_what_is_no_model_is_refused_by_the_argument(role, given, tmp_path):
    models = {"model": tiny.llama(seed=1), "teacher_model": tiny.llama(seed=2)} | {role: given}
    with pytest.raises(ValueError, match=rf"^{role} is .*; give a folder or a Hub name as text, or a loaded"):
        TrOPDTrainer(**models, args=tiny.config(tmp_path), train_dataset=tiny.same_dataset())


@pytest.mark.parametrize("argument", ["train_dataset", "eval_dataset"])
@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"prompt": 1}], "has prompts of the type"),
        ([{"prompt": ["a"]}], "has prompts of the type"),
        ([{"prompt": "a="}, {"prompt": None}], "has 1 rows without a prompt"),
    ],
)
def test_prompts_that_are_neither_text_nor_messages_are_refused_before_anything_is_loaded(
    argument, rows, sentence, tmp_path
):
    data = {"train_dataset": tiny.same_dataset(), "eval_dataset": None} | {argument: tiny.same_dataset(rows)}
    with pytest.raises(ValueError, match=f"^{argument} {sentence}"):
        TrOPDTrainer("no/student", "no/teacher", args=tiny.config(tmp_path), **data)


def test_another_configuration_is_refused(tmp_path):
    args = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match=r"^args is a GRPOConfig; give a TrOPDConfig"):
        TrOPDTrainer(tiny.llama(seed=1), tiny.llama(seed=2), args=args, train_dataset=tiny.same_dataset())
