"""`rollout_batch_size`: how many rollouts are written at once is a matter of memory alone."""

import pytest

from training import tiny
from training.tiny import build
from tropd.rollout.engine import loop, noise, writing
from tropd.rollout.engine.self_test import why_not_here

ROWS = [{"prompt": prompt, "teacher_response": "xyz+"} for prompt in tiny.PROMPTS[:2] for _ in range(4)]
WRITTEN = {"guidance_schedule": "constant", "guidance_length": "share", "guidance_min_tail": 4}


def rolled_out(tmp_path, method, rows, **options):
    trainer = build(tmp_path, tiny.llama(seed=1), tiny.llama(seed=2), method, **options)
    trainer.state.max_steps = 1
    trainer.model.train()
    return [rollout.response for rollout in tiny.roll_out(trainer, [dict(row) for row in rows])]


@pytest.mark.parametrize("method", ["opd", "tropd", "written"])
def test_rollouts_do_not_depend_on_how_many_are_written_at_once(tmp_path, monkeypatch, method):
    """Unguided, with prefixes of the data, and with those that the teacher writes."""
    assert why_not_here() is None  # which decodes something itself, once in a process
    monkeypatch.setattr(noise, "find_way", lambda *_: writing.WAYS[0])  # and so does this, once for each model
    most, decode = [], loop.decode
    monkeypatch.setattr(
        "tropd.rollout.engine.noise.decode",
        lambda model, request: most.append(request.rows_at_once) or decode(model, request),
    )
    options = WRITTEN if method == "written" else {}
    rows = [{"prompt": row["prompt"]} for row in ROWS] if method == "written" else ROWS
    name = "tropd" if method == "written" else method
    whole = rolled_out(tmp_path / "whole", name, rows, **options)
    assert len({tuple(response) for response in whole}) > 4
    calls = len(most)
    assert calls == (2 if method == "written" else 1), "our loop writes them"
    for size in (1, 3):
        assert rolled_out(tmp_path / str(size), name, rows, rollout_batch_size=size, **options) == whole
    assert most == [None] * calls + [1] * calls + [3] * calls
