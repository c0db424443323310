"""A run that is stopped after every step and resumed is the uninterrupted run: not one bit differs on one CPU process.

Sampling is real, and every run leaves PyTorch's generator in a state of its own before each step.
"""

import contextlib
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from training import tiny
from training.tiny import build, clone
from tropd.training.checkpointing.checkpoints import checkpoints_in

ROWS = [{"prompt": f"{first}+{second}="} for first in "abcd" for second in "efg"]
MIXED = [
    row | {"teacher_response": response} for row, response in zip(ROWS, ("xyz+12;", None, "1+2=3") * 4, strict=True)
]
"""Every third response is missing, so the teacher writes it."""

EPOCHS = {
    "max_steps": -1,
    "num_train_epochs": 2,
    "shuffle_dataset": True,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "logging_steps": 2,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "max_grad_norm": 1.0,
    "collapse_patience": None,
    "rows": ROWS[:6],
}
"""Three steps of two prompts in each of two epochs, so a logging window lies across the epochs' border."""

CLOCK = ("speed/", "step_time", "runtime", "samples_per_second", "steps_per_second")


class StopAfter(TrainerCallback):
    """The run ends after a step, with the checkpoint of that step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step >= self.step


class Crash(Exception):
    pass


class CrashAfter(StopAfter):
    """The run breaks off after a step, once its checkpoint, if there is one, is written."""

    def on_step_end(self, args, state, control, **kwargs):
        pass

    def on_save(self, args, state, control, **kwargs):
        self.on_step_begin(args, state, control)

    def on_step_begin(self, args, state, control, **kwargs):
        if self.step <= state.global_step < state.max_steps:
            raise Crash


class Scrambles(TrainerCallback):
    """Another state of PyTorch's generator before each step, in every run."""

    def on_step_begin(self, args, state, control, **kwargs):
        torch.seed()


# ---------------------------------------------------------------------- what a run did


def watched(trainer) -> dict[int, dict]:
    """What every later batch of training was made of, by the number of steps before it."""
    seen, build_batch = {}, trainer._build_batch

    def and_note(inputs):
        step, training = trainer.state.global_step, trainer.model.training
        batches = build_batch(inputs)
        if training:
            seen[step] = {"prompts": [row["prompt"] for row in inputs], "batches": [told(batch) for batch in batches]}
        return batches

    trainer._build_batch = and_note
    return seen


def told(batch) -> dict:
    """A micro-batch in numbers and text, which compare exactly."""
    signals = batch.signals
    return {
        "rollouts": [
            (r.row, r.prompt_ids, r.response[: r.prefix_length], r.response[r.prefix_length :], r.reward_advantage)
            for r in batch.rollouts
        ],
        "regions": [signals.trust_weight.tolist(), signals.outlier_weight.tolist(), signals.guidance_mask.tolist()],
        "scores": [signals.rollout_logp.tolist(), signals.teacher_logp.tolist()],
        "counts": batch.counts,
        "stage": batch.method,
    }


def assert_same_end(ours, theirs, logs=True) -> None:
    """Weights, optimiser, schedules, guard, and everything that was logged but for the clock's numbers."""
    exactly = {"rtol": 0, "atol": 0}
    torch.testing.assert_close(tiny.weights_of(ours.model), tiny.weights_of(theirs.model), **exactly)
    state, expected = ours.optimizer.state_dict(), theirs.optimizer.state_dict()
    assert {"step", "exp_avg", "exp_avg_sq"} <= set(expected["state"][0])
    torch.testing.assert_close(state["state"], expected["state"], **exactly)
    assert state["param_groups"] == expected["param_groups"]
    assert ours.lr_scheduler.state_dict() == theirs.lr_scheduler.state_dict()
    assert vars(ours.guard) == vars(theirs.guard) and ours.advantage_scale == theirs.advantage_scale
    assert (ours.state.global_step, ours.state.epoch) == (theirs.state.global_step, theirs.state.epoch)
    if logs:
        assert logged(ours) == logged(theirs)
        assert on_disk(ours) == on_disk(theirs)


def logged(trainer) -> list[dict]:
    return [without_clock(record) for record in trainer.state.log_history]


def on_disk(trainer) -> list[dict]:
    """The records of `metrics.jsonl`, without those that sum up a `train()` call: every stopped one has written its."""
    lines = (Path(trainer.args.output_dir) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [without_clock(record) for record in records if "train_runtime" not in record]


def without_clock(record: dict) -> dict:
    return {
        name: value
        for name, value in record.items()
        if not name.removeprefix("eval_").removeprefix("train_").startswith(CLOCK)
    }


# ---------------------------------------------------------------------- whole and in pieces


@pytest.fixture
def make(tmp_path, student, teacher):
    """A fresh trainer with fresh models; `options` are `tiny.build`'s and the configuration's."""

    def made(name, method, *callbacks, **options):
        torch.manual_seed(0)  # an adapter's first weights
        callbacks = [*callbacks, *options.pop("callbacks", [])]
        return build(tmp_path / name, clone(student), clone(teacher), method, callbacks=callbacks, **EPOCHS | options)

    return made


@pytest.fixture
def whole(make):
    """A run without a checkpoint: (trainer, what its steps were made of)."""

    def ran(method, name="whole", **options):
        trainer = make(name, method, **options)
        seen = watched(trainer)
        trainer.train()
        return trainer, seen

    return ran


@pytest.fixture
def pieces(make, tmp_path):
    """The same run by a trainer for every step, each going on from the last checkpoint of those before it."""

    def ran(method, steps, stop=StopAfter, **options):
        everything = {}
        for step in range(1, steps + 1):
            trainer = make("pieces", method, stop(step), save_strategy="steps", save_steps=1, **options)
            seen = watched(trainer)
            checkpoints = checkpoints_in(tmp_path / "pieces")
            with contextlib.suppress(Crash):
                trainer.train(resume_from_checkpoint=str(checkpoints[-1]) if checkpoints else None)
            for number, batch in seen.items():
                assert everything.setdefault(number, batch) == batch, "a step that was done again was another one"
        return trainer, everything

    return ran


def test_a_run_stopped_after_every_step_is_the_uninterrupted_run(whole, pieces):
    """Three epochs in other orders; eleven prompts, of which each epoch leaves one out, and every schedule at work."""
    options = {"rows": MIXED[:11], "num_train_epochs": 3, "warmup_steps": 4, "callbacks": [Scrambles()]}
    trainer, seen = whole("tropd", **options)
    resumed, seen_in_pieces = pieces("tropd", 15, **options)
    assert seen_in_pieces == seen
    assert_same_end(resumed, trainer)

    assert sorted(seen) == list(range(15))
    orders = [
        [prompt for step in range(5 * epoch, 5 * epoch + 5) for prompt in seen[step]["prompts"][::4]]
        for epoch in range(3)
    ]
    assert all(len(set(order)) == 10 for order in orders) and orders[0] != orders[1] != orders[2] != orders[0]
    assert something_of_everything(seen)
    rates = [record["learning_rate"] for record in trainer.state.log_history if "loss" in record]
    fractions = [record["guidance/fraction"] for record in trainer.state.log_history if "loss" in record]
    assert rates[0] < rates[1] > rates[-1] and fractions == sorted(fractions, reverse=True) and len(set(fractions)) == 7


def something_of_everything(seen) -> bool:
    """Were there draws on both sides of the gate, prefixes, and continuations of several lengths?"""
    batches = [batch for step in seen.values() for batch in step["batches"]]
    sums = [sum(map(sum, (batch["regions"][region] for batch in batches))) for region in range(3)]
    lengths = {len(rollout[part]) for batch in batches for rollout in batch["rollouts"] for part in (2, 3)}
    return min(sums) > 0 and len(lengths) > 4


def short(completions, **_):
    return [-float(len(completion)) for completion in completions]


VARIANTS = {
    "a method of two stages": ("reopold_2stage", {}),
    "a scale of the batches before": ("tv_opd", {}),
    "PyTorch's generator": ("tropd", {"addressed_sampling": False, "callbacks": []}),
    "an adapter": ("tropd", {"trainer_options": {"peft_config": LoraConfig(r=2, target_modules=["q_proj", "v_proj"])}}),
    "rewards": ("opd", {"reward_mixing_weight": 0.5, "trainer_options": {"reward_funcs": [short]}}),
    "evaluations": (
        "tropd",
        {"eval_strategy": "steps", "eval_steps": 2, "trainer_options": {"eval_dataset": tiny.same_dataset(ROWS[6:])}},
    ),
}


def settings_of(variant):
    method, settings = VARIANTS[variant]
    options = {"processing_class": tiny.tokenizer()} | settings.get("trainer_options", {})
    return method, {"callbacks": [Scrambles()]} | settings | {"trainer_options": options}


@pytest.mark.parametrize("variant", VARIANTS)
def test_so_it_is_with(whole, pieces, variant):
    method, options = settings_of(variant)
    trainer, seen = whole(method, **options)
    resumed, seen_in_pieces = pieces(method, 6, **options)
    assert seen_in_pieces == seen and sorted(seen) == list(range(6))
    assert_same_end(resumed, trainer)


def test_evaluations_change_nothing_but_the_log(whole):
    method, options = settings_of("evaluations")
    evaluated, seen = whole(method, **options)
    plain, seen_without = whole(method, name="plain", callbacks=[Scrambles()])
    assert seen == seen_without
    assert_same_end(evaluated, plain, logs=False)
    assert sum("eval_loss" in record for record in logged(evaluated)) == 3
    assert [record for record in logged(evaluated) if "eval_loss" not in record] == logged(plain)


# ---------------------------------------------------------------------- several updates from one batch

CYCLES = {"steps_per_generation": 4, "num_iterations": 2, "rows": ROWS[:8], "callbacks": [Scrambles()]}
"""A rollout batch of four prompts serves four optimiser steps: two batches in each of two epochs."""


def test_a_run_that_breaks_off_after_every_step_of_its_cycles_is_the_uninterrupted_run(whole, pieces, tmp_path):
    trainer, seen = whole("opd", **CYCLES)
    resumed, seen_in_pieces = pieces("opd", 16, stop=CrashAfter, **CYCLES)
    assert [int(path.name.split("-")[1]) for path in checkpoints_in(tmp_path / "pieces")] == [4, 8, 12, 16]
    assert seen_in_pieces == seen and sorted(seen) == [0, 4, 8, 12]
    assert_same_end(resumed, trainer)


def test_a_run_stopped_inside_a_cycle_has_its_later_cycles_at_the_same_steps(whole, make, tmp_path):
    """The rollouts of the cycle that was cut are lost with the process, so its rest has others of the same prompts."""
    _, seen = whole("opd", **CYCLES)
    make("cut", "opd", StopAfter(6), save_strategy="steps", save_steps=1, **CYCLES).train()
    trainer = make("cut", "opd", save_strategy="steps", save_steps=1, **CYCLES)
    seen_again = watched(trainer)
    trainer.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-6"))
    assert sorted(seen_again) == [6, 8, 12]
    assert seen_again[6]["prompts"] == seen[4]["prompts"]
    assert [seen_again[step]["prompts"] for step in (8, 12)] == [seen[step]["prompts"] for step in (8, 12)]


def test_the_batch_of_a_cycle_that_was_cut_counts_once_in_the_scale(make, tmp_path):
    """What is left of it is rolled out again, and counts then."""
    cut = make("cut", "tv_opd", StopAfter(6), save_strategy="steps", save_steps=1, **CYCLES)
    cut.train()
    kept = json.loads((tmp_path / "cut/checkpoint-6/tropd_state.json").read_text())["advantage_scale"]
    assert kept["mean"] == kept["reference"] == cut.advantage_scale.reference != cut.advantage_scale.mean


# ---------------------------------------------------------------------- one trainer, twice


class InterruptInside(TrainerCallback):
    """Breaks off between the two micro-batches of the fourth step, once."""

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            self.on_substep_end = super().on_substep_end
            raise Crash


def test_a_trainer_that_was_interrupted_inside_a_step_goes_on_from_its_checkpoint(whole, make):
    """As in a notebook: the same trainer, with half a step's rollouts and metrics in its memory."""
    trainer, seen = whole("tropd", callbacks=[Scrambles()])
    again = make("again", "tropd", InterruptInside(), Scrambles(), save_strategy="steps", save_steps=1)
    seen_again = watched(again)
    with pytest.raises(Crash):
        again.train()
    again.train(resume_from_checkpoint=True)
    assert seen_again == seen
    assert_same_end(again, trainer)
