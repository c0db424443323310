"""Rollouts that are cut off or repeat themselves: left out by switches, and a guard for when nothing else is left."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from training import tiny
from training.tiny import EOS, build, clone, largest, largest_difference, recorded, replay, run
from tropd.training.guards.errors import RolloutsCollapsed
from tropd.training.guards.step_guards import CollapseGuard

LOOP = [9] * 10
BATCH = recorded(8)
"""Rows 0, 2, 4, 6 end with EOS; the others are truncated."""


def test_truncated_rollouts_are_learned_from_unless_switched_off(tmp_path, student, teacher):
    def train(rows, **settings):
        return run(tmp_path, student, teacher, "opd", script=replay(rows), **settings)

    rewritten = [row if row[-1] == EOS else [30] * 9 + [31] for row in BATCH]
    masked = train(BATCH, mask_truncated_completions=True)
    assert largest(masked.gradients) > 0.01
    assert masked.logs[0]["response/excluded_share"] == 0.5
    assert masked.logs[0]["response/length"] == sum(map(len, BATCH)) / 8, "left out of the loss, not of the measures"
    assert masked.logs[0]["regions/num_trust"] == sum(len(row) for row in BATCH if row[-1] == EOS)
    # What a truncated row says has no influence: neither on the gradient nor on the count it is divided by.
    assert largest_difference(masked.gradients, train(rewritten, mask_truncated_completions=True).gradients) == 0
    assert largest_difference(train(BATCH).gradients, train(rewritten).gradients) > 0.01
    assert train(BATCH).logs[0]["response/excluded_share"] == 0


def test_repetitive_rollouts_are_left_out_by_their_own_switch(tmp_path, student, teacher):
    batch = [LOOP, [*[8] * 9, EOS], *BATCH[2:]]
    kept = run(tmp_path, student, teacher, "opd", script=replay(batch))
    masked = run(tmp_path, student, teacher, "opd", script=replay(batch), mask_repetitive_completions=True)
    assert kept.logs[0]["response/repetitive_share"] == masked.logs[0]["response/repetitive_share"] == 1 / 8
    assert masked.logs[0]["response/excluded_share"] == 1 / 8
    assert masked.logs[0]["regions/num_trust"] == kept.logs[0]["regions/num_trust"] - len(LOOP)
    assert largest_difference(kept.gradients, masked.gradients) > 0.01


@pytest.mark.parametrize("method", ["opd", "tropd", "gkd", "jsd", "entropy_opd", "reopold_2stage"])
def test_a_step_of_excluded_rollouts_alone_is_a_step_of_zero(tmp_path, student, teacher, method):
    truncated = [list(range(4, 14))] * 8
    done = run(tmp_path, student, teacher, method, script=replay(truncated), mask_truncated_completions=True)
    assert done.logs[0]["loss"] == 0 and done.logs[0]["response/excluded_share"] == 1
    assert largest(done.gradients) == 0
    assert "trust/fraction" not in done.logs[0], "a mean over nothing is absent, not zero"


def test_an_excluded_row_keeps_its_prefix_out_of_the_loss_too(tmp_path, student, teacher):
    rows = [{"prompt": p, "teacher_response": "xyz+"} for p in tiny.PROMPTS]
    done = run(tmp_path, student, teacher, rows=rows, script=replay([[20, 21]] * 8), mask_truncated_completions=True)
    assert done.logs[0]["regions/num_guidance"] == 0 and done.logs[0]["guidance/prefix_length"] == 3


# ---------------------------------------------------------------------- the guard


def collapse_after(good: int):
    return replay(*[BATCH] * good, *[[LOOP] * 8] * 9)


def test_a_collapsed_run_stops_after_its_patience_with_the_checkpoint_kept(tmp_path, student, teacher):
    settings = {"max_steps": 9, "collapse_patience": 3, "save_final_model": True}
    trainer = build(tmp_path, clone(student), clone(teacher), "opd", script=collapse_after(2), **settings)
    with pytest.raises(RolloutsCollapsed, match=r"stopped at step 5: in each of the last 3 steps at least 90% of the "):
        trainer.train()
    assert trainer.state.global_step == 5
    assert json.loads((tmp_path / "checkpoint-5" / "trainer_state.json").read_text())["global_step"] == 5
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-5")
    assert largest_difference(dict(kept.named_parameters()), tiny.weights_of(trainer.model)) == 0
    assert torch.isfinite(torch.cat([p.flatten() for p in kept.parameters()])).all()


def test_good_steps_in_between_start_the_count_again(tmp_path, student, teacher):
    script = replay([LOOP] * 8, [LOOP] * 8, BATCH)
    done = run(tmp_path, student, teacher, "opd", script=script, max_steps=6, collapse_patience=3)
    assert len(done.steps) == 6


def test_the_guard_can_be_switched_off(tmp_path, student, teacher):
    done = run(tmp_path, student, teacher, "opd", script=collapse_after(0), max_steps=6, collapse_patience=None)
    assert len(done.steps) == 6 and done.logs[-1]["response/collapsed_share"] == 1


def test_empty_rollouts_collapse_as_well(tmp_path, student, teacher):
    script = replay([[EOS]] * 8)
    with pytest.raises(RolloutsCollapsed, match="empty, only repeated themselves, or no longer ended"):
        run(tmp_path, student, teacher, "opd", script=script, max_steps=6, collapse_patience=2)


def test_a_share_below_the_threshold_does_not_count():
    guard = CollapseGuard(share=0.5, patience=2)
    for share in (0.5, 0.49, 0.5):
        guard.observe(share, 1.0)
    assert not guard.tripped
    guard.observe(1.0)
    assert guard.tripped


def test_a_student_that_ends_where_the_teachers_prefix_left_it_has_not_collapsed(tmp_path, student, teacher):
    """With a full prefix the right answer may be to stop at once."""
    rows = [{"prompt": p, "teacher_response": "xyz+"} for p in tiny.PROMPTS]
    settings = {"guidance_schedule": "constant", "max_steps": 4, "collapse_patience": 2}
    done = run(tmp_path, student, teacher, rows=rows, script=replay([[EOS]] * 8), **settings)
    assert len(done.steps) == 4
