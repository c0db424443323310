"""TV-OPD's coefficient in a run: from the batches before, on what trusted tokens learn, and in training alone."""

import pytest

import reference
from training.tiny import ROWS, build, clone, largest, recorded, replay, run, same_dataset

SCRIPTS = [recorded(16, seed=seed) for seed in (2, 3, 0, 1)]
STILL = {"learning_rate": 0.0, "rows": ROWS * 2, "steps_per_generation": 4, "gradient_accumulation_steps": 2}
"""The student does not move, so what a step learns without the scale is what it would learn with one of 1."""


def test_every_update_from_a_batch_is_scaled_by_the_batches_before(tmp_path, student, teacher):
    """Four batches of two micro-batches in each of two optimiser steps; the twin reads what is logged of trust."""
    options = {"max_steps": 8, "per_device_train_batch_size": 4, **STILL}
    scaled, plain = (
        run(tmp_path / scale, student, teacher, "tv_opd", script=replay(*SCRIPTS), advantage_scale=scale, **options)
        for scale in ("total_variation", "none")
    )
    found = [entry["trust/advantage_scale"] for entry in scaled.logs if "trust/advantage_scale" in entry]
    measured = [1 - entry["trust/fraction"] for entry in scaled.logs if "trust/fraction" in entry]
    assert found == pytest.approx(reference.total_variation_scales(measured), abs=1e-6)
    assert len(found) == 4 and len(set(found[1:])) == 3 and found[-1] < 0.999, "the batches must differ"
    assert not any("trust/advantage_scale" in entry for entry in plain.logs)
    for number, (ours, theirs) in enumerate(zip(scaled.steps, plain.steps, strict=True)):
        scale, unit = found[number // 2], largest(theirs.gradients)
        assert unit > 1e-3
        for name, gradient in ours.gradients.items():
            assert gradient.flatten().tolist() == pytest.approx(
                (scale * theirs.gradients[name]).flatten().tolist(), abs=1e-6 * unit
            )


def test_an_evaluation_neither_is_scaled_nor_counts(tmp_path, student, teacher):
    options = {"trainer_options": {"eval_dataset": same_dataset(ROWS)}, "rows": ROWS}
    trainer = build(tmp_path, clone(student), clone(teacher), "tv_opd", script=replay(recorded(8)), **options)
    trainer.train()
    before = trainer.advantage_scale
    trainer.script = None
    assert trainer.evaluate() and "eval_trust/advantage_scale" not in trainer.state.log_history[-1]
    assert trainer.advantage_scale == before and before.mean == before.reference > 0
    trainer.model.eval()
    assert trainer.step_setup().advantage_scale is None


def test_a_batch_of_which_nothing_is_learned_does_not_count(tmp_path, student, teacher):
    cut = [list(range(4, 14))] * 8
    script = replay(recorded(8), cut, recorded(8, seed=1))
    settings = {"rows": ROWS, "max_steps": 3, "mask_truncated_completions": True, "collapse_patience": None}
    two = run(
        tmp_path / "two", student, teacher, "tv_opd", script=replay(recorded(8), cut), **settings | {"max_steps": 2}
    )
    assert two.trainer.scale_before_cycle == two.trainer.advantage_scale, "a stop now loses nothing of the first"
    done = run(tmp_path, student, teacher, "tv_opd", script=script, **settings)
    first, second, third = (entry.get("trust/fraction") for entry in done.logs)
    assert second is None and done.trainer.advantage_scale.reference == 1 - first
    assert done.trainer.advantage_scale.mean == pytest.approx(0.95 * (1 - first) + 0.05 * (1 - third))
