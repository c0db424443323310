"""The trainer's loss is the fused one: the gradients of the per-token path, whatever wraps the layers."""

import pytest
import torch

from training import tiny
from training.tiny import recorded, replay, run
from tropd.objective import fused_loss, reduce_losses, student_terms, token_losses
from tropd.objective.head.fused_loss import FusedLoss

METHODS = ["tropd", "mask_outlier", "jsd", "gkd", "eopd", "entropy_opd"]


def per_token_loss(hidden, head, token_ids, method, signals, counts, direct, every_token) -> FusedLoss:
    """The per-token path in the place of `fused_loss`."""
    student_logp, values, mass = student_terms(hidden, head, token_ids, direct)
    losses = token_losses(method, signals, student_logp, values)
    loss = reduce_losses(losses, counts, method.reduction)
    parts = (losses.trust, losses.outlier, losses.guidance, losses.reward)
    return FusedLoss(loss, *(part.detach() for part in (student_logp, values, mass, *parts)))


def a_run(directory, student, teacher, method, **settings):
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 2} | settings
    return run(directory, student, teacher, method, script=replay(recorded(8)), **settings)


@pytest.mark.parametrize("method", METHODS)
def test_steps_are_those_of_the_per_token_path(tmp_path, student, teacher, method, monkeypatch):
    settings = {"guidance_schedule": "none"} if method == "tropd" else {}
    ours = a_run(tmp_path / "fused", student, teacher, method, **settings)
    monkeypatch.setattr("tropd.training.step.fused_loss", per_token_loss)
    theirs = a_run(tmp_path / "plain", student, teacher, method, **settings)
    assert tiny.largest(theirs.gradients) > 0
    for mine, other in zip(ours.steps, theirs.steps, strict=True):
        assert tiny.largest_difference(mine.gradients, other.gradients) <= 1e-6 * tiny.largest(other.gradients) + 1e-7
    for mine, other in zip(ours.logs, theirs.logs, strict=True):
        timed = ("speed/", "train_", "step_time")
        names = [name for name in other if not name.startswith(timed)]
        assert [mine[name] for name in names] == pytest.approx([other[name] for name in names], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_wraps_the_layers_and_not_the_head(tmp_path, student, teacher, monkeypatch, reentrant):
    calls = []

    def counted(*args, **options):
        calls.append(torch.is_grad_enabled())
        return fused_loss(*args, **options)

    without = a_run(tmp_path / "without", student, teacher, "opd")
    monkeypatch.setattr("tropd.training.step.fused_loss", counted)
    kwargs = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    done = a_run(tmp_path / "checkpointed", student, teacher, "opd", **kwargs)
    assert calls == [True] * 4  # two micro-batches of two steps
    assert tiny.largest_difference(done.gradients, without.gradients) <= 1e-6
