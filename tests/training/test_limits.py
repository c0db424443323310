"""The limits of METHOD 1.5, through the trainer, on replayed rollouts.

Models are float32. Two runs that compute the same numbers in the same order are compared exactly; where padding or the
order of sums differs, the gradients, which are of order 1, agree to 1e-5.
"""

import math

import pytest
import torch

from training import tiny
from training.tiny import (
    EOS,
    clone,
    gradients_of,
    groups,
    ids,
    largest,
    largest_difference,
    plain_logp,
    plain_logps,
    recorded,
    replay,
    run,
)
from tropd.objective.randomness import addressed_uniforms

ROUNDING = 1e-5
RECORDED = recorded(8)


@pytest.fixture
def step(tmp_path, student, teacher):
    """One optimiser step of a method on the recorded rollouts."""

    def one_step(method: str, rollouts=RECORDED, **settings):
        return run(tmp_path, student, teacher, method, script=replay(rollouts), **settings)

    return one_step


@pytest.fixture
def opd(step):
    done = step("opd")
    assert largest(done.gradients) > 0.1, "a limit of zero gradients would prove nothing"
    return done


# ---------------------------------------------------------------------- methods that coincide


@pytest.mark.parametrize("reduction", ["shared", "per_region"])
def test_tropd_with_every_token_trusted_and_no_prefix_is_opd(step, opd, reduction):
    settings = {"gate": "hard", "outlier_tau": -math.inf, "guidance_schedule": "none", "reduction": reduction}
    assert largest_difference(step("tropd", **settings).gradients, opd.gradients) == 0


def test_reverse_kl_on_every_token_of_the_vocabulary_is_gkd_and_on_a_few_is_not(step):
    gkd = step("gkd").gradients
    for name in ("resopd", "tropd_support"):
        assert largest_difference(step(name, fkl_top_k=10_000).gradients, gkd) < ROUNDING * largest(gkd)
    few = step("tropd_support", fkl_top_k=2).gradients
    assert largest_difference(few, gkd) > 0.01
    whole, union = (step("tropd_support", support="union", fkl_top_k=k).gradients for k in (10_000, 2))
    assert largest_difference(whole, gkd) < ROUNDING * largest(gkd)
    assert min(largest_difference(union, other) for other in (gkd, few)) > 0.01


def test_reverse_kl_on_rejected_tokens_is_gkd_where_all_are_rejected_and_the_whole_vocabulary_is_read(step):
    settings = {"outlier": "rkl_direct", "outlier_tau": -math.inf, "fkl_top_k": 10_000}
    gkd, opd = step("gkd").gradients, step("opd").gradients
    assert largest_difference(step("fkl", **settings).gradients, gkd) < ROUNDING * largest(gkd)
    gated = step("fkl_outlier", **settings).gradients
    assert min(largest_difference(gated, other) for other in (gkd, opd)) > 0.01


def test_the_mixture_with_the_teacher_alone_is_opd(step, opd):
    assert largest_difference(step("mixture_opd", advantage_alpha=1.0).gradients, opd.gradients) < ROUNDING


def test_tropd_with_its_own_gate_is_not_opd(step, opd):
    assert largest_difference(step("tropd", guidance_schedule="none").gradients, opd.gradients) > 0.1


def test_eopd_that_finds_no_entropy_high_is_opd(step, opd):
    eopd = step("eopd", teacher_entropy_tau=math.inf)
    assert largest_difference(eopd.gradients, opd.gradients) == 0
    assert largest_difference(step("eopd").gradients, opd.gradients) > 0.1


def test_the_first_phase_of_reopold_without_a_floor_is_opd(step, opd):
    # `selected` divides by the number of trusted tokens, which is every token when nothing lies below the floor.
    assert largest_difference(step("reopold_2stage", outlier_tau=-math.inf).gradients, opd.gradients) == 0
    assert largest_difference(step("reopold_2stage").gradients, opd.gradients) > 0.01


def test_clipping_below_every_log_ratio_is_opd(step, opd):
    assert largest_difference(step("reopold", outlier_tau=-1e6).gradients, opd.gradients) == 0
    assert largest_difference(step("reopold", outlier_tau=-1.0).gradients, opd.gradients) > 0.01


def test_a_forward_kl_that_covers_the_vocabulary_is_gkd_at_beta_zero(step):
    fkl, gkd = step("fkl", fkl_top_k=tiny.VOCABULARY_ROWS), step("gkd", jsd_beta=0.0)
    assert largest_difference(fkl.gradients, gkd.gradients) < ROUNDING * largest(gkd.gradients)


# ---------------------------------------------------------------------- against plain Transformers, float64


def test_opd_takes_the_policy_gradient_of_the_log_ratio(opd, student, teacher):
    scorer, model = clone(teacher).double(), clone(student).double()
    loss = torch.zeros((), dtype=torch.float64)
    for prompt, response in zip(groups(), RECORDED, strict=True):
        logp = plain_logp(model, prompt, response)
        log_ratio = (plain_logp(scorer, prompt, response) - logp).detach()
        loss = loss - (log_ratio * logp).sum()
    expected = gradients_of(model, loss / sum(map(len, RECORDED)))
    assert largest_difference(opd.gradients, expected) < ROUNDING * largest(expected)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tropd_takes_the_reference_step_of_the_method_page(step, student, teacher, temperature):
    """METHOD 1.6 written out: prefix ⊕ continuation, addressed draws, K1, top-k forward KL, NLL, one shared mean."""
    guided = [{"prompt": p, "teacher_response": ids(r)} for p, r in zip(tiny.PROMPTS, ("xyz+", "ghk=12"), strict=False)]
    settings = {"guidance_beta": 0.3, "guidance_length": "share", "fkl_top_k": 5, "temperature": temperature}
    done = step("tropd", rows=guided, **settings)

    prefixes = [ids("xyz")] * 4 + [ids("ghk=1")] * 4  # α₀ = 1: all but one token
    responses = [[*p, *written][:10] for p, written in zip(prefixes, RECORDED, strict=True)]
    expected = reference_step(
        clone(student).double(), clone(teacher).double(), prefixes, responses, 0.3, 5, temperature
    )
    assert largest_difference(done.gradients, expected) < ROUNDING * largest(expected)


def reference_step(model, scorer, prefixes, responses, beta, top_k, temperature):
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row, (prompt, prefix, response) in enumerate(zip(groups(), prefixes, responses, strict=True)):
        tokens = torch.tensor(response)[:, None]
        student_logps = (plain_logps(model, prompt, response) / temperature).log_softmax(-1)
        teacher_logps = (plain_logps(scorer, prompt, response) / temperature).log_softmax(-1).detach()
        logp = student_logps.gather(-1, tokens)[:, 0]
        log_ratio = (teacher_logps.gather(-1, tokens)[:, 0] - logp).detach()
        uniforms = addressed_uniforms(7, 0, [row], len(response))[0]
        trusted = (uniforms < log_ratio.clamp_max(0).exp()).double()
        top = teacher_logps.topk(top_k)
        forward = (top.values.exp() * (top.values - student_logps.gather(-1, top.indices))).sum(-1)
        on_policy = trusted * -(logp - logp.detach()).exp() * log_ratio + (1 - trusted) * forward
        guided = torch.arange(len(response)) < len(prefix)
        total = total + torch.where(guided, -beta * logp, on_policy).sum()
        count += len(response)
    return gradients_of(model, total / count)


# ---------------------------------------------------------------------- batches that coincide

GUIDED_ROWS = [
    {"prompt": prompt, "teacher_response": response}
    for prompt, response in zip(tiny.PROMPTS, ("xyz+xyz", "ghk=12", "1+2=3", "m"), strict=True)
]


@pytest.mark.parametrize("method", ["tropd", "gkd", "jsd", "reopold_2stage", "entropy_opd", "tropd_support"])
@pytest.mark.parametrize("rows", [4, 2, 1])
def test_a_step_of_eight_rows_is_the_same_step_in_micro_batches(step, method, rows):
    # tropd divides by three regions' counts here, all of which differ between the micro-batches.
    settings = {"rows": GUIDED_ROWS, "reduction": "per_region"} if method == "tropd" else {}
    whole = step(method, **settings)
    parts = step(method, per_device_train_batch_size=rows, gradient_accumulation_steps=8 // rows, **settings)
    assert largest(whole.gradients) > 0.01
    assert largest_difference(parts.gradients, whole.gradients) < ROUNDING * largest(whole.gradients)
    assert parts.logs[0]["loss"] == pytest.approx(whole.logs[0]["loss"], rel=1e-4, abs=1e-7)
    for name in ("regions/num_trust", "regions/num_outlier", "regions/num_guidance"):
        assert parts.logs[0][name] == whole.logs[0][name]
    for name in ("loss/trust", "loss/outlier", "loss/guidance"):
        assert parts.logs[0][name] == pytest.approx(whole.logs[0][name], rel=1e-4, abs=1e-6)


def test_micro_batches_leave_the_same_weights(step):
    whole = step("opd", optim="sgd", learning_rate=0.1)
    parts = step("opd", optim="sgd", learning_rate=0.1, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert largest_difference(parts.steps[0].weights, whole.steps[0].weights) < ROUNDING


def test_two_steps_of_one_generation_batch_divide_by_their_own_counts(step):
    both = step("opd", max_steps=2, learning_rate=0.0, per_device_train_batch_size=4, steps_per_generation=2)
    first = step("opd", RECORDED[:4], per_device_train_batch_size=4)
    second = step("opd", RECORDED[4:], per_device_train_batch_size=4, rows=[{"prompt": tiny.PROMPTS[1]}])
    for ours, alone in zip(both.steps, (first, second), strict=True):
        assert largest_difference(ours.gradients, alone.gradients) < ROUNDING * largest(alone.gradients)


def test_rows_of_other_lengths_do_not_change_a_rows_gradient(step):
    """Row 0 beside seven rows without loss, short or long: the padding differs and nothing else."""

    def only_first_row_counts(length: int):
        others = [list(range(4, 4 + length))] * 7  # no EOS: truncated, so left out
        return step("opd", [[9, 8, 7, EOS], *others], mask_truncated_completions=True).gradients

    short, long = only_first_row_counts(2), only_first_row_counts(10)
    assert largest(short) > 0.01
    assert largest_difference(short, long) < ROUNDING * largest(short)


# ---------------------------------------------------------------------- teacher = student


def test_a_student_that_is_its_teacher_has_nothing_to_learn_by_k1(tmp_path, student):
    done = run(tmp_path, student, student, "opd", script=replay(RECORDED))
    logged = done.logs[0]
    assert logged["trust/fraction"] == pytest.approx(1, abs=1e-6)
    assert logged["log_ratio/p01"] == pytest.approx(0, abs=1e-5)
    assert logged["log_ratio/p99"] == pytest.approx(0, abs=1e-5)
    assert abs(logged["loss"]) < 1e-6
    assert largest(done.gradients) < 1e-6


def test_a_student_that_is_its_teacher_is_still_moved_by_topk_and_prefix_terms(tmp_path, student):
    fkl = run(tmp_path, student, student, "fkl", script=replay(RECORDED), fkl_top_k=4)
    assert largest(fkl.gradients) > 1e-2  # P·π_S − π_T·1[top-k] is zero only at k = V
    tropd = run(tmp_path, student, student, "tropd", script=replay(RECORDED), rows=GUIDED_ROWS, guidance_beta=1.0)
    assert tropd.logs[0]["regions/num_outlier"] == 0
    assert largest(tropd.gradients) > 1e-2
