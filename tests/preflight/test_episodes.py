"""A preflight with tools: turns, calls that can be read, and trust turn by turn."""

import pytest

from training import agents
from training.agents import ANSWER, ASK, CALL, build
from tropd.preflight.episode_measurement import call_opener
from tropd.preflight.measure import measure
from tropd.preflight.probe import probe
from tropd.preflight.screen import render_measurement

BROKEN = '<tool_call>\n{"name": "calculator", "argum<|im_end|>'


@pytest.mark.parametrize(
    ("last", "calls", "parsed"), [(ANSWER, 1, 1.0), (BROKEN, 2, 0.5)], ids=["an answer", "a call that is none"]
)
def test_calls_turns_and_trust_are_those_of_the_rollouts(tmp_path, last, calls, parsed):
    trainer = build(tmp_path, lambda context: last if "<tool_response>" in agents.reads(context) else CALL)
    assert agents.text([call_opener(trainer)]) == "<tool_call>"
    seen = probe(trainer, [{"prompt": ASK}])
    measured = measure(seen)
    found, count = measured.episodes, len(seen.rollouts)
    assert (found.mean_turns, found.cut_share, found.num_calls) == (2, 0, calls * count)
    assert found.parsed_share == parsed
    assert [bucket.num_tokens for bucket in found.turns] == [count * len(agents.ids(text)) for text in (CALL, last)]
    ratio = (seen.tokens.teacher_logp - seen.tokens.student_logp).double()
    first = seen.tokens.position < len(agents.ids(CALL))
    for bucket, inside in zip(found.turns, (first, ~first), strict=True):
        assert bucket.trust_fraction == pytest.approx(ratio[inside].exp().clamp(max=1).mean().item())
        assert bucket.k1 == pytest.approx(-ratio[inside].mean().item())
    said = str(render_measurement(measured))
    assert f"{parsed:.1%} of {calls * count} turns that open one" in said and "turn 2  " in said


def test_a_call_that_was_cut_could_be_read(tmp_path):
    trainer = build(tmp_path, lambda context: CALL, max_tool_calling_iterations=1)
    found = measure(probe(trainer, [{"prompt": ASK}])).episodes
    assert found.cut_share == 1 and found.parsed_share == 1 and found.mean_turns == 2
