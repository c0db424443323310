"""The weights of turns in a run: as their twins say, nothing in the limits, and refused where there is one turn."""

import pytest
import torch

import reference
from training.agents import ANSWER, ASK, RECORDED, build, calls_then_answers, logged, rollouts
from training.tiny import Recorder


def by_turn(found: list, values: list[float]) -> list[list[list[float]]]:
    """Values of scored tokens, as a list of turns for each episode."""
    left, episodes = iter(values), []
    for rollout in found:
        episodes.append([[next(left) for position in turn if rollout.scored[position]] for turn in rollout.turns])
    assert next(left, None) is None
    return episodes


@pytest.mark.parametrize("method", ["fkl_outlier", "tropd"])
def test_each_token_has_the_weight_of_its_turn(tmp_path, monkeypatch, method):
    """Of a student's two turns, and of a teacher's turn before the student's, which is all accepted."""
    monkeypatch.setattr("tropd.training.step.guidance_fraction", lambda *_: 0.5)
    settings = {"guidance_length": "share", "rows": RECORDED} if method == "tropd" else {}
    trainer = build(
        tmp_path, calls_then_answers, method, reduction="per_turn", turn_trust="weight", logging_steps=1, **settings
    )
    found, signals = rollouts(trainer), trainer._buffered_inputs[0].signals
    assert {len(rollout.turns) for rollout in found} == {2}
    accepted = [
        1.0 if taught else reference.trust_probability(r)
        for taught, r in zip(signals.guidance_mask.tolist(), signals.log_ratio.tolist(), strict=True)
    ]
    assert any(signals.guidance_mask) == (method == "tropd")
    expected = []
    for episode in by_turn(found, accepted):
        size = sum(map(len, episode))
        for turn, trust in zip(episode, reference.turn_trusts(episode), strict=True):
            expected += [trust * size / (len(episode) * len(turn))] * len(turn)
    assert signals.turn_weight.tolist() == pytest.approx(expected, rel=1e-5)
    own = [w for w, taught in zip(expected, signals.guidance_mask.tolist(), strict=True) if not taught]
    assert logged(trainer)["agent/turn_weight"] == pytest.approx(sum(own) / len(own), rel=1e-4)


def test_rewards_are_weighed_by_turns_and_not_by_trust(tmp_path):
    def reward(completions, **_):
        return [float(number % 2) for number in range(len(completions))]

    seen = {}
    for name, changes in {"plain": {}, "turns": {"reduction": "per_turn"}, "trust": {"turn_trust": "weight"}}.items():
        settings = {"reward_funcs": reward, "reward_mixing_weight": 1.0}
        trainer = build(tmp_path / name, calls_then_answers, "opd", **settings, **changes)
        trainer.train()
        seen[name] = trainer._buffered_inputs[0].signals
    plain = seen["plain"].reward_advantage
    assert plain.abs().min() > 0
    torch.testing.assert_close(seen["turns"].reward_advantage, plain * seen["turns"].turn_weight)
    assert torch.equal(seen["trust"].reward_advantage, plain)
    assert seen["trust"].turn_weight.lt(1).any() and seen["trust"].turn_weight.eq(1).any()


@pytest.mark.parametrize("changes", [{"reduction": "per_turn"}, {"turn_trust": "weight"}], ids=["mean", "trust"])
def test_with_one_turn_they_are_todays_loss_bit_for_bit(tmp_path, changes):
    seen = []
    for number, settings in enumerate((changes, {})):
        recorder = Recorder()
        trainer = build(tmp_path / str(number), lambda _: ANSWER, "fkl_outlier", **settings)
        trainer.add_callback(recorder)
        assert {len(rollout.turns) for rollout in rollouts(trainer)} == {1}
        seen.append(recorder.steps[0].gradients)
    assert all(torch.equal(value, seen[1][name]) for name, value in seen[0].items())


@pytest.mark.parametrize("changes", [{"reduction": "per_turn"}, {"turn_trust": "weight"}], ids=["mean", "trust"])
def test_eight_rows_are_four_and_four(tmp_path, changes):
    def play(context: list[int]) -> str:
        return calls_then_answers(context) if len(context) % 2 else ANSWER

    seen = []
    for name, (rows, parts) in {"whole": (8, 1), "cut": (4, 2)}.items():
        recorder = Recorder()
        trainer = build(
            tmp_path / name,
            play,
            "opd",
            rows=[{"prompt": ASK}, {"prompt": [{"role": "user", "content": ASK[0]["content"] + " "}]}] * 4,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=parts,
            **changes,
        )
        trainer.add_callback(recorder)
        trainer.train()
        seen.append(recorder.steps[0].gradients)
    for name, value in seen[0].items():
        torch.testing.assert_close(value, seen[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("changes", [{"reduction": "per_turn"}, {"turn_trust": "weight"}], ids=["mean", "trust"])
def test_without_turns_they_are_refused(tmp_path, changes):
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=f"{name} is '{value}', but there are no tools, no environment and no rollout"):
        build(tmp_path, lambda _: ANSWER, "opd", tools=None, rows=[{"prompt": "a"}] * 4, **changes)
