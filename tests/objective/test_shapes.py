"""What does not fit is refused at the door, in a sentence with both shapes, instead of broadcasting in silence."""

import re

import pytest
import torch

from tropd import objective
from tropd.objective import FullVocabularyTerm, Head, RegionCounts, TokenLosses, TokenSignals, TopKTerm, get_method

FIVE, THREE, ROWS, TOKENS = torch.zeros(5), torch.zeros(3), torch.zeros(3, 5), torch.zeros(3, dtype=torch.long)
HEAD, HIDDEN = Head(torch.zeros(7, 2)), torch.zeros(4, 2)
BOTH = {"k1", "k2", "k3", "forward_kl", "reverse_kl"}
WITH_WEIGHT = {"generalized_jsd", "topk_jsd_teacher_part", "jsd_sampled_advantage"}
SKEWED = {"skew_forward_kl", "skew_reverse_kl", "topk_forward_kl"}


def signals(num: int = 3, **changes: torch.Tensor) -> TokenSignals:
    names = ("rollout_logp", "teacher_logp", "trust_weight", "outlier_weight", "guidance_mask")
    return TokenSignals(**{name: torch.zeros(num) for name in names} | changes)


def refusal(call) -> str:
    with pytest.raises(ValueError) as refused:
        call()
    return str(refused.value)


@pytest.mark.parametrize("name", sorted(BOTH | WITH_WEIGHT | SKEWED))
@pytest.mark.parametrize(("student", "teacher"), [(FIVE, ROWS), (ROWS, FIVE), (ROWS, torch.zeros(1, 5))])
def test_student_and_teacher_must_be_alike(name, student, teacher):
    more = [0.5] if name in WITH_WEIGHT else []
    said = refusal(lambda: getattr(objective, name)(student, teacher, *more))
    assert str(list(student.shape)) in said and str(list(teacher.shape)) in said


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "skew_forward_kl", "topk_forward_kl"])
def test_a_distribution_has_an_axis(name):
    said = refusal(lambda: getattr(objective, name)(torch.tensor(0.0), torch.tensor(0.0)))
    assert said.endswith("is of shape []; it needs at least 1 axis")


# The call, the argument that is named, and the shapes.
DOORS = {
    "a tail of other rows": (
        lambda: objective.topk_forward_kl(ROWS, ROWS, "tail", FIVE),
        "student_tail_logp_N",
        [5],
        [3],
    ),
    "uniforms": (lambda: objective.trust_weight("bernoulli", THREE, uniforms=FIVE), "uniforms", [5], [3]),
    "uniforms of one more axis": (
        lambda: objective.trust_weight("bernoulli", THREE, uniforms=torch.zeros(1, 3)),
        "uniforms",
        [1, 3],
        [3],
    ),
    "selected tokens": (
        lambda: objective.trust_weight("student_entropy", THREE, selected=ROWS > 0),
        "selected",
        [3, 5],
        [3],
    ),
    "an advantage": (lambda: objective.policy_gradient_loss(THREE, THREE, FIVE), "advantage_N", [5], [3]),
    "the policy that sampled": (
        lambda: objective.policy_gradient_loss(THREE, ROWS, THREE),
        "rollout_logp_N",
        [3, 5],
        [3],
    ),
    "a signal": (lambda: signals(trust_weight=FIVE), "trust_weight", [5], [3]),
    "rewards": (lambda: signals(reward_advantage=FIVE), "reward_advantage", [5], [3]),
    "a scale": (lambda: signals(advantage_scale=FIVE), "advantage_scale", [5], [3]),
    "a region's losses": (lambda: TokenLosses(THREE, FIVE, THREE, THREE), "outlier", [5], [3]),
    "ids of a top-k": (
        lambda: TopKTerm(TOKENS, torch.zeros(3, 2), torch.zeros(3, 4), print),
        "teacher_logp",
        [3, 2],
        [3, 4],
    ),
    "rows of a top-k": (lambda: TopKTerm(TOKENS[:2], ROWS, ROWS, print), "token_ids", [3, 5], [2]),
    "the teacher's states": (lambda: FullVocabularyTerm(TOKENS, HIDDEN, HEAD, print), "teacher_hidden", [4, 2], [3]),
    "log-probabilities of signals": (
        lambda: objective.token_losses(get_method("opd"), signals(), FIVE, FIVE),
        "signals",
        [5],
        [3],
    ),
    "a direct term": (lambda: objective.token_losses(get_method("opd"), signals(), THREE, FIVE), "direct_N", [5], [3]),
    "tokens of the student's terms": (lambda: objective.student_terms(HIDDEN, HEAD, TOKENS), "hidden_NH", [4, 2], [3]),
    "sampled tokens": (lambda: objective.sampled_logps(HIDDEN, HEAD, TOKENS), "hidden_NH", [4, 2], [3]),
    "one token per row": (lambda: objective.gather_logps(HIDDEN, TOKENS), "logps_NV", [4, 2], [3]),
    "rows without an axis of the vocabulary": (lambda: objective.gather_logps(THREE, TOKENS), "logps_NV", [3], [3]),
    "states of another width": (lambda: objective.topk_logps(ROWS, HEAD, 2), "hidden", (3, 5), 2),
    "a bias": (lambda: Head(torch.zeros(7, 2), bias=FIVE), "bias", [5], [7, 2]),
    "tokens of the fused loss": (
        lambda: objective.fused_loss(HIDDEN, HEAD, TOKENS, get_method("opd"), signals(), RegionCounts(3, 0, 0)),
        "hidden_NH",
        [4, 2],
        [3],
    ),
    "signals of the fused loss": (
        lambda: objective.fused_loss(HIDDEN[:3], HEAD, TOKENS, get_method("opd"), signals(5), RegionCounts(3, 0, 0)),
        "signals",
        [5],
        [3],
    ),
}


@pytest.mark.parametrize("door", DOORS)
def test_what_does_not_fit_is_refused_with_both_shapes(door):
    call, name, *shapes = DOORS[door]
    said = refusal(call)
    assert re.search(rf"\b{name}\b", said) and all(str(shape) in said for shape in shapes)


def test_any_number_of_axes_is_read_alike():
    logps = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    others = logps.roll(1, -1)
    assert torch.equal(objective.reverse_kl(logps, others)[1], objective.reverse_kl(logps[1], others[1]))
