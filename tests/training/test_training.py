"""Every method and every way of handing things over trains for real: tiny models, their own samples, two steps."""

import math

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from training import tiny
from training.tiny import build, clone, largest, largest_difference, recorded, replay, run
from tropd import METHODS
from tropd.training.guards.errors import RolloutsCollapsed

ROWS = [{"prompt": p, "teacher_response": "xyz+"} for p in tiny.PROMPTS]


def assert_it_moved(done, student, steps=2):
    assert len(done.logs) == steps
    assert all(math.isfinite(entry["loss"]) and entry["grad_norm"] > 0 for entry in done.logs)
    assert largest_difference(tiny.weights_of(done.trainer.model), tiny.weights_of(student)) > 0


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(tmp_path, student, teacher, method):
    assert_it_moved(run(tmp_path, student, teacher, method, max_steps=2), student)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("tropd", {"gate": "expected"}),
        ("tropd", {"gate": "hard", "outlier_tau": -1.0}),
        ("tropd", {"outlier": "fkl_scalar"}),
        ("tropd", {"outlier": "clip", "reduction": "per_region"}),
        ("tropd", {"fkl_truncation": "tail", "guidance_length": "share", "guidance_schedule": "linear"}),
        ("fkl", {"fkl_truncation": "teacher_renorm", "fkl_top_k": 1}),
        ("gkd", {"jsd_beta": 0.5}),
        ("reopold_2stage", {"switch_at": 0.5}),
    ],
)
def test_every_part_trains(tmp_path, student, teacher, method, settings):
    assert_it_moved(run(tmp_path, student, teacher, method, max_steps=2, **settings), student)


def test_a_two_stage_method_switches_where_it_is_told(tmp_path, student, teacher):
    done = run(tmp_path, student, teacher, "reopold_2stage", script=replay(recorded(8)), max_steps=4, switch_at=0.5)
    # The top fifth of 60 tokens is 12 in phase II; phase I trusts every r ≥ floor, most of them.
    assert [entry["regions/num_trust"] == 12 for entry in done.logs] == [False, False, True, True]


def test_one_rollout_for_each_prompt(tmp_path, student, teacher):
    done = run(tmp_path, student, teacher, max_steps=2, num_generations=1, per_device_train_batch_size=4)
    assert_it_moved(done, student)
    assert len(set(map(tuple, done.trainer.contexts_seen[0]))) == 4


@pytest.mark.parametrize("method", ["tropd", "eopd", "gkd"])
def test_several_updates_of_one_batch(tmp_path, student, teacher, method):
    done = run(tmp_path, student, teacher, method, max_steps=4, num_iterations=2)
    assert_it_moved(done, student, steps=4)
    assert len(done.trainer.contexts_seen) == 2


def test_the_second_update_weighs_by_the_importance_ratio(tmp_path, student, teacher):
    """At learning rate 0 the second update repeats the first; after a step its ratio is no longer 1."""
    settings = {"max_steps": 2, "num_iterations": 2, "script": replay(recorded(8)), "optim": "sgd"}
    still = run(tmp_path, student, teacher, "opd", learning_rate=0.0, **settings)
    assert largest_difference(still.steps[0].gradients, still.steps[1].gradients) == 0
    moved = run(tmp_path, student, teacher, "opd", learning_rate=0.03, **settings)
    assert largest_difference(moved.steps[0].gradients, moved.steps[1].gradients) > 1e-3


def test_an_adapter_is_trained_and_the_model_under_it_is_not(tmp_path, student, teacher):
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = build(tmp_path, clone(student), clone(teacher), max_steps=2, trainer_options={"peft_config": lora})
    before = tiny.weights_of(trainer.model)
    trainer.train()
    changed = {name for name, weight in tiny.weights_of(trainer.model).items() if not weight.equal(before[name])}
    assert changed and all("lora_" in name for name in changed)
    base = {name: weight for name, weight in before.items() if "lora_" not in name}
    assert len(base) == len(list(student.parameters()))


def test_an_adapter_takes_the_same_first_loss_as_the_whole_model(tmp_path, student, teacher):
    """LoRA starts as the identity, so the scores of the first batch are those of the model under it."""
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    plain = run(tmp_path, student, teacher, "opd", script=replay(recorded(8)))
    adapted = run(tmp_path, student, teacher, "opd", script=replay(recorded(8)), trainer_options={"peft_config": lora})
    assert adapted.logs[0]["loss"] == pytest.approx(plain.logs[0]["loss"], abs=1e-6)


def test_models_are_loaded_from_their_folders(tmp_path, student, teacher):
    for name, model in (("student", student), ("teacher", teacher)):
        clone(model).save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    trainer = build(
        tmp_path / "run",
        str(tmp_path / "student"),
        str(tmp_path / "teacher"),
        "opd",
        script=replay(recorded(8)),
        trainer_options={"processing_class": None},
    )
    trainer.train()
    loaded = [entry for entry in trainer.state.log_history if "loss" in entry]
    plain = run(tmp_path, student, teacher, "opd", script=replay(recorded(8)))
    assert loaded[0]["loss"] == pytest.approx(plain.logs[0]["loss"], abs=1e-6)
    assert trainer.teacher_tokenizer.get_vocab() == tiny.tokenizer().get_vocab()


def test_conversational_prompts_train_with_guidance(tmp_path, student, teacher):
    rows = [
        {"prompt": [{"role": "user", "content": p}], "teacher_response": [{"role": "assistant", "content": "xyz+"}]}
        for p in tiny.PROMPTS
    ]
    done = run(tmp_path, student, teacher, rows=rows, max_steps=2)
    assert_it_moved(done, student)
    assert done.logs[0]["guidance/prefix_length"] == 3


def test_the_teacher_never_changes(tmp_path, student, teacher):
    done = run(tmp_path, student, teacher, rows=ROWS, max_steps=2)
    assert largest_difference(tiny.weights_of(done.trainer.teacher.model), tiny.weights_of(teacher)) == 0


# ---------------------------------------------------------------------- scores that are not numbers


@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
@pytest.mark.parametrize("method", ["opd", "tropd", "gkd", "jsd", "fkl", "reopold_2stage", "eopd"])
def test_tokens_without_a_finite_teacher_score_are_left_out_and_counted(
    tmp_path, monkeypatch, student, teacher, method, bad
):
    trainer = build(tmp_path, clone(student), clone(teacher), method, script=replay(recorded(8)), rows=ROWS)
    spoil(trainer, monkeypatch, bad, tokens=(4, 30))
    recorder = tiny.Recorder()
    trainer.add_callback(recorder)
    trainer.train()
    (logged,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert math.isfinite(logged["loss"]) and math.isfinite(largest(recorder.steps[0].gradients))
    assert logged["teacher/nonfinite_tokens"] == 2
    signals = trainer._buffered_inputs[0].signals
    weights = signals.trust_weight + signals.outlier_weight + signals.guidance_mask
    left_out = [n for n in (4, 30) if signals.guidance_mask[n] == 0]
    assert [n for n in range(len(weights)) if weights[n] == 0] == left_out


def spoil(trainer, monkeypatch, bad, tokens):
    """A teacher that says something unusable about a few tokens, in its own pass over the head."""
    from tropd.models.packing import PackedResponses
    from tropd.teacher import local

    class Spoiled(PackedResponses):
        def states(self, hidden_BLH):
            states = super().states(hidden_BLH).clone()
            states[list(tokens)] = math.nan if math.isnan(bad) else states[list(tokens)]
            return states

    pack = local.pack_responses
    monkeypatch.setattr(local, "pack_responses", lambda *rows, **how: Spoiled(**vars(pack(*rows, **how))))
    if not math.isnan(bad):
        score = trainer.teacher.score

        def spoiled(*args, topk=None, **kwargs):
            if topk is not None:
                wanted = topk.wanted
                topk = local.TopKRequest(
                    topk.k, topk.vocab_limit, lambda logp, entropy, at: wanted(put(logp, at), entropy, at)
                )
            scores = score(*args, topk=topk, **kwargs)
            return type(scores)(**{**vars(scores), "logp": put(scores.logp, slice(0, len(scores.logp)))})

        def put(logp, at):
            logp = logp.clone()
            for token in tokens:
                if at.start <= token < at.stop:
                    logp[token - at.start] = bad
            return logp

        trainer.teacher.score = spoiled


def test_leaving_a_token_out_equals_a_step_without_it(tmp_path, monkeypatch, student, teacher):
    """The last token of the last row has no score: the same gradient as if that row ended before it."""
    shorter = [*recorded(8)[:-1], recorded(8)[-1][:-1]]
    expected = run(tmp_path, student, teacher, "opd", script=replay(shorter))
    recorder = tiny.Recorder()
    trainer = build(tmp_path, clone(student), clone(teacher), "opd", script=replay(recorded(8)), callbacks=[recorder])
    spoil(trainer, monkeypatch, math.nan, tokens=(sum(map(len, recorded(8))) - 1,))
    trainer.train()
    assert largest_difference(recorder.steps[0].gradients, expected.gradients) < 1e-5 * largest(expected.gradients)


def test_a_loss_that_is_not_a_number_stops_before_the_step(tmp_path, student, teacher):
    pupil = clone(student)
    trainer = build(tmp_path, pupil, clone(teacher), "opd", script=replay(recorded(8)), max_steps=3)
    compute = trainer._compute_loss
    calls = []

    def poisoned(model, inputs):
        calls.append(1)
        if len(calls) == 2:
            with torch.no_grad():
                pupil.lm_head.weight[5, 5] = math.nan
        return compute(model, inputs)

    before = {}
    trainer._compute_loss = poisoned
    trainer.add_callback(Remember(before))
    with pytest.raises(FloatingPointError, match=r"the loss of step 2 is nan, so the step was not taken.*Lower the "):
        trainer.train()
    after = tiny.weights_of(pupil)
    after["lm_head.weight"][5, 5] = before["lm_head.weight"][5, 5]
    assert largest_difference(after, before) == 0


def test_an_infinite_divergence_is_traced_to_what_the_teacher_rules_out(tmp_path):
    teacher = tiny.llama(seed=2)
    teacher.lm_head = torch.nn.Linear(16, tiny.VOCABULARY_ROWS)
    with torch.no_grad():
        teacher.lm_head.bias[10:20] = -math.inf
    trainer = build(tmp_path, tiny.llama(seed=1), teacher, "gkd")
    with pytest.raises(FloatingPointError, match=r"the loss of step 1 is inf.*Where the teacher rules tokens out"):
        trainer.train()


class Remember(tiny.TrainerCallback):
    def __init__(self, into):
        self.into = into

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.into.update(tiny.weights_of(model))


def test_the_collapse_error_is_one_that_callers_can_catch():
    assert issubclass(RolloutsCollapsed, RuntimeError)


def test_a_saved_checkpoint_loads_as_a_model(tmp_path, student, teacher):
    run(tmp_path, student, teacher, "opd", max_steps=2, save_strategy="steps", save_steps=1)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-1").config.vocab_size == tiny.VOCABULARY_ROWS
