"""The best model is the final one, wherever its evaluation fell and whatever is kept; without any, a sentence."""

import shutil
from itertools import product

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback

from training import tiny
from training.tiny import Recorder, ScriptedTrainer, clone
from tropd.training.checkpointing.checkpoints import checkpoints_in, fault_of
from tropd.training.checkpointing.final_model import best_of

EVALUATION = Dataset.from_list([{"prompt": "g="}])


class Graded(ScriptedTrainer):
    """An evaluation gives the grade of its step, so that it is known which model is the best."""

    best = 0

    def evaluate(self, *args, **kwargs):
        return {"eval_grade": float(self.state.global_step == self.best)}


class Stop(TrainerCallback):
    """As a signal does: a checkpoint, and no more steps."""

    def __init__(self, after):
        self.after = after

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.after:
            control.should_save = control.should_training_stop = True


@pytest.fixture
def graded(tmp_path, pair):
    """Train for three steps, the first two of them on one rollout batch; an evaluation follows each."""

    def run(
        best, *, directory=tmp_path / "run", resume=None, callbacks=(), data=tiny.ROWS, peft_config=None, **settings
    ):
        defaults = {"max_steps": 3, "num_iterations": 2, "eval_strategy": "steps", "eval_steps": 1}
        chosen = {"metric_for_best_model": "grade", "greater_is_better": True, "save_final_model": True}
        recorder = Recorder()
        trainer = Graded(
            clone(pair[0]),
            clone(pair[1]),
            args=tiny.config(directory, "opd", **(defaults | chosen | settings)),
            train_dataset=Dataset.from_list(data),
            eval_dataset=EVALUATION,
            processing_class=tiny.tokenizer(),
            peft_config=peft_config,
            callbacks=[recorder, *callbacks],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.recorder, trainer.best = recorder, best
        trainer.script = tiny.replay(tiny.recorded(8))
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        return trainer

    return run


def step_of(folder, *runs):
    """The step after which the weights were those of a folder."""
    found = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    steps = [step.weights for run in runs for step in run.recorder.steps]
    (number,) = [n for n, weights in enumerate(steps, 1) if all(torch.equal(weights[k], found[k]) for k in found)]
    return number


def names(directory):
    return [path.name for path in checkpoints_in(directory)]


SAVING = (
    {"save_strategy": "steps", "save_steps": 1},
    {"save_strategy": "steps", "save_steps": 3},
    {"save_strategy": "best"},
)


@pytest.mark.parametrize(
    ("saving", "limit", "best"),
    [*product(SAVING, (1,), (1, 2, 3)), *zip(SAVING, (None, None, 2), (1, 2, 3), strict=True)],
)
def test_the_final_model_is_the_best_one(graded, tmp_path, saving, limit, best):
    trainer = graded(best, load_best_model_at_end=True, save_total_limit=limit, **saving)
    checkpoint = tmp_path / "run" / f"checkpoint-{best}"
    assert step_of(tmp_path / "run", trainer) == best == step_of(checkpoint, trainer)
    assert trainer.state.best_model_checkpoint == str(checkpoint) and fault_of(checkpoint) is None
    assert not (tmp_path / "run/.writing").exists()
    if limit == 1:
        assert names(tmp_path / "run") == [checkpoint.name]
    card = (tmp_path / "run/README.md").read_text()
    assert f"| {best} (the best of 3 by grade) |" in card and card.count("- opd\n") == 1


@pytest.mark.parametrize("saving", SAVING)
def test_without_being_asked_for_the_best_the_final_model_is_the_last_and_the_best_stays(graded, tmp_path, saving):
    trainer = graded(2, save_total_limit=1, **saving)
    assert step_of(tmp_path / "run", trainer) == 3
    assert saving.get("save_steps") == 3 or "checkpoint-2" in names(tmp_path / "run")
    assert "| optimiser steps | 3 |" in (tmp_path / "run/README.md").read_text()


def test_a_best_model_at_the_end_of_an_epoch(graded, tmp_path):
    epochs = {"eval_strategy": "epoch", "save_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2}
    trainer = graded(4, data=tiny.ROWS[:4], load_best_model_at_end=True, save_total_limit=1, **epochs)
    assert trainer.state.global_step == 8 and step_of(tmp_path / "run", trainer) == 4


def test_the_best_adapter_is_the_final_one(graded, tmp_path):
    adapter = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    graded(1, peft_config=adapter, load_best_model_at_end=True, save_strategy="steps", save_steps=1)
    final, best, last = (
        load_file(tmp_path / "run" / folder / "adapter_model.safetensors")
        for folder in (".", "checkpoint-1", "checkpoint-3")
    )
    assert all(torch.equal(final[name], best[name]) for name in best)
    assert not all(torch.equal(final[name], last[name]) for name in last)


def test_a_run_that_was_stopped_keeps_its_last_checkpoint_beside_the_best_and_ends_with_the_best(graded, tmp_path):
    options = {"load_best_model_at_end": True, "save_total_limit": 1, "save_strategy": "steps", "save_steps": 3}
    begun = graded(1, callbacks=[Stop(2)], **options)
    assert names(tmp_path / "run") == ["checkpoint-1", "checkpoint-2"]
    shutil.move(tmp_path / "run", tmp_path / "moved")
    ended = graded(1, directory=tmp_path / "moved", resume=tmp_path / "moved/checkpoint-2", **options)
    assert step_of(tmp_path / "moved", begun, ended) == 1


def test_where_the_best_checkpoint_is_gone_the_run_does_not_go_on_as_if_it_were_there(graded, tmp_path):
    options = {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 1}
    graded(1, callbacks=[Stop(2)], **options)
    assert best_of(tmp_path / "run/checkpoint-2") == tmp_path / "run/checkpoint-1"
    shutil.rmtree(tmp_path / "run/checkpoint-1")
    gone = (
        r"load_best_model_at_end is True, but checkpoint-1, the best of this run.* is not next to .*checkpoint-2\. Put"
    )
    with pytest.raises(ValueError, match=gone):
        best_of(tmp_path / "run/checkpoint-2")
    with pytest.raises(ValueError, match=gone):
        graded(1, resume=tmp_path / "run/checkpoint-2", **options)


def test_a_stop_gets_its_checkpoint_under_save_strategy_best_too(graded, tmp_path):
    graded(1, callbacks=[Stop(2)], load_best_model_at_end=True, save_strategy="best")
    assert names(tmp_path / "run") == ["checkpoint-1", "checkpoint-2"]


def test_no_evaluation_no_best_model(graded, tmp_path, caplog):
    for settings in ({"load_best_model_at_end": True, "save_strategy": "no"}, {"save_strategy": "best"}):
        with pytest.raises(ValueError, match=rf"{next(iter(settings))} is .*, but eval_strategy is 'no'.*Set eval_str"):
            graded(1, eval_strategy="no", **settings)
    with pytest.raises(ValueError, match=r"metric_for_best_model is 'bleu', .*\(it has: eval_grade"):
        graded(1, load_best_model_at_end=True, save_strategy="best", metric_for_best_model="bleu")
    trainer = graded(1, directory=tmp_path / "late", load_best_model_at_end=True, save_strategy="best", eval_delay=9)
    assert step_of(tmp_path / "late", trainer) == 3 and "no evaluation found a best model (eval_delay 9)" in caplog.text
