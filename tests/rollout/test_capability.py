"""Our decoding loop and the installed Transformers: tried on a tiny model, and left alone where the trial fails."""

import logging
import re

import pytest
import torch
from transformers import LlamaForCausalLM

from training import tiny
from tropd.preflight.probe import probe
from tropd.rollout.engine import loop, noise, slots
from tropd.rollout.engine.self_test import why_not_here

ROWS = [{"prompt": prompt} for prompt in tiny.PROMPTS]


@pytest.fixture
def forgetful():
    """What is found out once in a process is found out again, and not remembered afterwards."""
    for remembered in (why_not_here, noise.say_why_plain):
        remembered.cache_clear()
    yield
    for remembered in (why_not_here, noise.say_why_plain):
        remembered.cache_clear()


def test_the_installed_transformers_can_be_decoded_with(forgetful):
    state = torch.get_rng_state()
    assert why_not_here() is None
    assert torch.equal(torch.get_rng_state(), state), "the trial draws nothing from anybody's generator"


def wrong_positions(monkeypatch):
    forward = LlamaForCausalLM.forward

    def shifted(self, *args, position_ids=None, **kwargs):
        return forward(self, *args, position_ids=None if position_ids is None else position_ids * 2, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", shifted)


def another_name(monkeypatch):
    monkeypatch.setattr(loop, "CACHES", ("renamed",))


def a_cache_that_moved(monkeypatch):
    def moved(self, device):
        raise AttributeError("layers")

    monkeypatch.setattr(slots.Slots, "__init__", moved)


def a_loop_that_writes_something_else(monkeypatch):
    note = loop._Loop._note

    def wrong(self, logits, *args):
        note(self, logits * 1.01, *args)

    monkeypatch.setattr(loop._Loop, "_note", wrong)


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        (another_name, r"fails on a tiny model \(RuntimeError: it does not receive what it reads"),
        (a_cache_that_moved, r"fails on a tiny model \(AttributeError: layers\)"),
        (a_loop_that_writes_something_else, "differ from a plain forward pass"),
    ],
)
def test_a_release_that_moved_leaves_rollouts_to_transformers_says_so_once_and_a_metric_tells(
    breaks, words, forgetful, monkeypatch, tmp_path, caplog
):
    with monkeypatch.context() as moved:
        breaks(moved)
        assert re.search(words, why_not_here() or "")
        with caplog.at_level(logging.WARNING):
            trainer = tiny.build(tmp_path, tiny.llama(seed=1), tiny.llama(seed=2), "opd", max_steps=2)
            trainer.train()
    warnings = [r.getMessage() for r in caplog.records if "Transformers' own loop" in r.getMessage()]
    assert len(warnings) == 1
    logged = [entry["rollout/engine"] for entry in trainer.state.log_history if "rollout/engine" in entry]
    assert logged and set(logged) == {0.0}


def test_a_model_that_decodes_with_other_positions_than_it_reads_is_refused(forgetful, monkeypatch, tmp_path):
    """Transformers' own loop would be no help: it gives the same positions."""
    with monkeypatch.context() as moved:
        wrong_positions(moved)
        assert "differ from a plain forward pass" in why_not_here()
        trainer = tiny.build(tmp_path, tiny.llama(seed=1), tiny.llama(seed=2), "opd", max_steps=2)
        with pytest.raises(ValueError, match="a LlamaForCausalLM does not sample from its own softmax"):
            trainer.train()


def test_where_the_trial_succeeds_the_metric_names_our_loop(tmp_path):
    trainer = tiny.build(tmp_path, tiny.llama(seed=1), tiny.llama(seed=2), "opd", max_steps=1)
    trainer.train()
    assert [entry["rollout/engine"] for entry in trainer.state.log_history if "rollout/engine" in entry] == [1.0]
    assert len(probe(trainer, ROWS[:1]).rollouts) == 4
