"""The measurement against NumPy, and against exact distances where a vocabulary can be enumerated."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from training import tiny
from tropd.preflight.measure import forecast_gradient, measure, standard_error
from tropd.preflight.measurement import EndingUse, PositionBucket
from tropd.preflight.probe import probe
from tropd.preflight.probe_records import Probe, ProbedEndings, ProbedPrompts, ProbedTokens, ProbeTimes
from tropd.teacher.endings import Declared, pair_endings
from tropd.training.records import Rollout

LENGTHS = (20, 3, 70)
TIMES = ProbeTimes(1.0, 1.0, 1.0, 1, (3,), (70,), 9, 93, 93)


def made_up(seed=0, **changes) -> Probe:
    """Three rollouts of two prompts with random scores; a log-probability is at most 0."""
    random = np.random.default_rng(seed)
    count = sum(LENGTHS)

    def logp(scale):
        return torch.tensor(-random.exponential(scale, count))

    columns = {
        "rollout": torch.tensor([row for row, length in enumerate(LENGTHS) for _ in range(length)]),
        "position": torch.tensor([place for length in LENGTHS for place in range(length)]),
        "student_logp": logp(1.0),
        "trainer_logp": logp(1.0),
        "student_entropy": torch.tensor(random.random(count)),
        "student_collision": torch.tensor(random.random(count)),
        "student_topk_mass": torch.tensor(random.random(count)),
        "teacher_logp": logp(2.5),
        "teacher_entropy": torch.tensor(random.random(count)),
        "teacher_topk_mass": torch.tensor(random.random(count)),
    }
    rollouts = [
        Rollout(0, [1, 2], [1, 2], [5] * LENGTHS[0], ended_by=5),
        Rollout(1, [1, 2], [1, 2], [5] * LENGTHS[1], ended_by=5, collapsed=True),
        Rollout(2, [3], [3], [5] * LENGTHS[2], repetitive=True),
    ]
    curve = torch.tensor([0.6, 0.9, 0.99, 0.995])
    prompts = ProbedPrompts(2, torch.tensor([-1.0]), torch.tensor([-3.0]))
    endings = ProbedEndings(
        pair_endings(Declared((5,)), {None: Declared((7,))}, ending="one_action", ending_ids=None, vocab_size=50),
        ids=(5, 7, 8, 9),
        student=torch.tensor([[0.9, 0.0, 0.0, 0.1], [0.5, 0.1, 0.0, 0.3], [0.2, 0.0, 0.0, 0.0]]),
        teacher=torch.tensor([[0.0, 0.2, 0.8, 0.0], [0.0, 0.4, 0.5, 0.0], [0.0, 0.7, 0.1, 0.9]]),
        student_ends=torch.tensor([True, True, False]),
        teacher_ends=torch.tensor([False, True, True]),
    )
    return Probe(rollouts, ProbedTokens(**(columns | changes)), prompts, endings, TIMES, 4, curve, 50, 1.0)


def test_every_number_is_numpys():
    seen = made_up()
    m = measure(seen)
    tokens = {name: column.numpy() for name, column in vars(seen.tokens).items()}
    r = tokens["teacher_logp"] - tokens["student_logp"]
    outliers = np.sort(r[r < -2])
    expected = {
        "num_prompts": 2,
        "num_rollouts": 3,
        "num_tokens": 93,
        "nonfinite_tokens": 0,
        "trust_fraction": np.minimum(np.exp(r), 1).mean(),
        "k1": -r.mean(),
        "mean_abs_gap": np.abs(tokens["teacher_logp"] - tokens["trainer_logp"]).mean(),
        "student_nll": -tokens["student_logp"].mean(),
        "teacher_nll": -tokens["teacher_logp"].mean(),
        "student_entropy": tokens["student_entropy"].mean(),
        "teacher_entropy": tokens["teacher_entropy"].mean(),
        "chance_nll": math.log(50),
        "outlier_share": (r < -2).mean(),
        "deep_outlier_share": (r < -5).mean(),
        "log_ratio_median": np.median(r),
        "log_ratio_min": r.min(),
        "outlier_p50": outliers[round(0.5 * (len(outliers) - 1))],
        "outlier_p01": outliers[round(0.01 * (len(outliers) - 1))],
        "teacher_topk_mass": tokens["teacher_topk_mass"].mean(),
        "student_topk_mass": tokens["student_topk_mass"].mean(),
        "top_k": 4,
        "k_for_99": 3,
        "vocab_size": 50,
        "prompt_tokens": 1,
        "student_prompt_nll": 1.0,
        "teacher_prompt_nll": 3.0,
        "mean_length": 31.0,
        "max_length": 70,
        "ended_length": 11.5,
        "truncated_share": 1 / 3,
        "repetitive_share": 1 / 3,
        "collapsed_share": 1 / 3,
        "excluded_share": 0.0,
    }
    for name, value in expected.items():
        assert getattr(m, name) == pytest.approx(value), name


def test_endings_are_counted_where_the_other_model_ends():
    m = measure(made_up()).endings
    assert (m.merged, m.known, m.num_ended, m.num_at_teachers) == (True, (5, 7), 2, 2)
    # 8 is what the teacher gives where the student ends; 9 is much only where the teacher itself would end.
    assert [use.token_id for use in m.uses] == [5, 7, 8, 9] and m.undeclared == (8, 9)
    expected = EndingUse(7, ("teacher",), *(pytest.approx(value) for value in (0.05, 0.3, 0.05, 0.55)))
    assert m.uses[1] == expected
    assert (m.student_id, m.teacher_id) == (5, 7)
    assert m.apart and not m.aligned, "an ending outside of E is an action of its own"
    inside = replace(m, uses=m.uses[:2])
    assert inside.apart and inside.aligned and not replace(inside, merged=False).aligned


def test_the_last_tokens_of_ended_responses_are_a_denominator_of_their_own():
    seen = made_up()
    r = (seen.tokens.teacher_logp - seen.tokens.student_logp).numpy()
    last = r[[LENGTHS[0] - 1, LENGTHS[0] + LENGTHS[1] - 1]]
    assert measure(seen).endings.last_outlier_share == pytest.approx((last < -2).mean())


def test_positions_are_bucketed_where_tokens_are():
    seen = made_up()
    r = (seen.tokens.teacher_logp - seen.tokens.student_logp).numpy()
    place = seen.tokens.position.numpy()
    expected = []
    for start, stop, count in ((0, 16, 16 + 3 + 16), (16, 64, 4 + 48), (64, 256, 6)):
        inside = (place >= start) & (place < stop)
        assert inside.sum() == count
        trust = np.minimum(np.exp(r[inside]), 1).mean()
        expected.append(PositionBucket(start, stop, count, pytest.approx(trust), pytest.approx(-r[inside].mean())))
    assert list(measure(seen).positions) == expected


def test_the_standard_error_takes_rollouts_for_units():
    values, rollout = torch.tensor([1.0, 1.0, 5.0, 5.0], dtype=torch.float64), torch.tensor([0, 0, 7, 7])
    # Two units whose sums lie 4 below and 4 above: √(2/1 · (16 + 16)) / 4 = 2, where four tokens would claim 1.15.
    assert standard_error(values, rollout) == pytest.approx(2.0)
    assert standard_error(values, torch.zeros(4, dtype=torch.long)) is None


def test_the_standard_error_is_the_spread_of_repeated_probes():
    generator = torch.Generator().manual_seed(0)
    levels = torch.randn(500, 12, 1, generator=generator, dtype=torch.float64)
    values = levels + torch.randn(500, 12, 30, generator=generator, dtype=torch.float64)
    rollout = torch.arange(12).repeat_interleave(30)
    claimed = sum(standard_error(probe.flatten(), rollout) for probe in values) / 500
    assert claimed == pytest.approx(values.mean((1, 2)).std().item(), rel=0.1)


def test_a_token_without_a_finite_score_is_counted_and_in_no_other_number():
    broken = made_up().tokens.teacher_logp.clone()
    broken[:20] = torch.tensor([-math.inf, math.nan]).repeat(10)
    m = measure(made_up(teacher_logp=broken))
    assert (m.num_tokens, m.nonfinite_tokens) == (73, 20)
    r = (broken - made_up().tokens.student_logp)[20:]
    assert m.k1 == pytest.approx(-r.mean().item())
    assert math.isfinite(m.teacher_nll)


def test_nothing_to_measure_is_absent_and_never_zero():
    m = measure(made_up(teacher_logp=torch.full((93,), -math.inf)))
    assert (m.num_tokens, m.nonfinite_tokens, m.positions) == (0, 93, ())
    assert [m.trust_fraction, m.k1, m.outlier_share, m.gradient, m.trust_standard_error] == [None] * 5
    assert json.loads(json.dumps(m.as_dict(), allow_nan=False))["positions"] == []


def test_numbers_that_json_has_no_name_for_become_null():
    only_outliers = made_up(student_logp=torch.full((93,), -1.0), teacher_logp=torch.full((93,), -9.0))
    m = measure(only_outliers)
    assert m.gradient.ratio == math.inf
    assert m.as_dict()["gradient"] == {"outlier_share": 1.0, "ratio": None}


# ---------------------------------------------------------------------- laws


def test_the_forecast_is_the_norm_of_k1s_gradient_in_the_logits():
    """Token by token with autograd, and the tokens taken for orthogonal."""
    torch.manual_seed(0)
    logits = torch.randn(40, 9, dtype=torch.float64, requires_grad=True)
    sampled = torch.randint(9, (40, 1))
    r = torch.randn(40, dtype=torch.float64) * 3 - 1
    logps = logits.log_softmax(-1)
    (-r * logps.gather(-1, sampled)[:, 0]).sum().backward()
    squares = logits.grad.square().sum(-1)
    probs = logps.detach().exp()
    forecast = forecast_gradient(r, probs.gather(-1, sampled)[:, 0], probs.square().sum(-1))
    trusted = squares[r > -2].sum()
    assert forecast.ratio == pytest.approx((squares.sum() / trusted).sqrt().item())
    assert forecast.outlier_share == pytest.approx(1 - (trusted / squares.sum()).item())


def test_without_a_difference_there_is_no_gradient_to_forecast():
    nothing = torch.zeros(3, dtype=torch.float64)
    assert forecast_gradient(nothing, nothing + 0.5, nothing + 0.4) is None


def test_trust_is_one_minus_the_exact_total_variation(tmp_path):
    """On the states that the student sampled, over the whole vocabulary, within three standard errors."""
    trainer = tiny.build(
        tmp_path, tiny.llama(seed=1), tiny.llama(seed=2), "opd", per_device_train_batch_size=128, num_generations=32
    )
    seen = probe(trainer, [{"prompt": prompt} for prompt in tiny.PROMPTS])
    m, distances, divergences = measure(seen), [], []
    for rollout in seen.rollouts:
        student = tiny.plain_logps(trainer.model, rollout.prompt_ids, rollout.response).detach()
        teacher = tiny.plain_logps(trainer.teacher.model, rollout.teacher_context, rollout.response).detach()
        distances.append(0.5 * (student.exp() - teacher.exp()).abs().sum(-1))
        divergences.append((student.exp() * (student - teacher)).sum(-1))
    assert m.trust_standard_error < 0.03
    assert m.trust_fraction == pytest.approx(1 - torch.cat(distances).mean().item(), abs=3 * m.trust_standard_error)
    assert m.k1 == pytest.approx(torch.cat(divergences).mean().item(), abs=3 * m.k1_standard_error)


def test_a_model_and_itself_agree_everywhere(tmp_path):
    model = tiny.llama(seed=1)
    m = measure(probe(tiny.build(tmp_path, tiny.clone(model), tiny.clone(model), "opd"), [{"prompt": "ab="}]))
    assert m.mean_abs_gap == 0
    assert (m.trust_fraction, m.outlier_share) == (1.0, 0.0)
    assert m.gradient is None


def test_the_sampler_speaks_for_r_and_the_trainer_for_the_gap():
    seen = made_up()
    same = replace(seen, tokens=replace(seen.tokens, trainer_logp=seen.tokens.teacher_logp))
    assert measure(same).mean_abs_gap == 0
    assert measure(same).k1 == measure(seen).k1
