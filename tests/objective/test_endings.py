"""The ending as one action (semantic stop): twins over events, enumeration over ids, and the laws of coarsening.

The twins know events (the ids outside E, then `stop`); ours knows ids of which the first of E stands for all. Both get
the same raw logits. Of a batch every id is sampled at least once, endings too.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

import reference
from objective.test_expected_gradients import CASES
from objective.test_fused_loss import OPTIONS
from objective.test_head import LargestTensor, twin_logps
from reference import Array, coarsened, events_of_ids, log_softmax, pair, settings_of, spread_over_ids
from reference.methods import direct_gradient, direct_value, outlier_advantage, terms
from training import tiny
from training.tiny import EOS, PAD, clone, plain_logps
from tropd import objective
from tropd.objective import (
    METHODS,
    FullVocabularyTerm,
    Head,
    Method,
    RegionCounts,
    SeveralTerms,
    TokenSignals,
    get_method,
)
from tropd.objective.endings import events_of, one_action
from tropd.objective.head import matmul
from tropd.teacher.local import LocalTeacher, TopKRequest

SIZE, WIDTH, NUM, PREFIX = 11, 4, 13, 3
GUIDANCE = 0.3
ENDINGS = {"two": (3, 8), "two, far and unsorted": (10, 0), "three": (7, 2, 4)}
REGIONS = ("trust", "outlier", "guidance", "reward")
SOME = ["opd", "tropd none 3", "tropd tail 3", "fkl 64", "eopd uncertain", "jsd 3", "gkd 0.0", "gkd 0.3", "gkd 1.0"]
WITHOUT_TOPK = [name for name, method in METHODS.items() if not method.needs_topk]
each_set = pytest.mark.parametrize("endings", ENDINGS.values(), ids=ENDINGS)
each_case = pytest.mark.parametrize("case", CASES)
some_cases = pytest.mark.parametrize("case", SOME)
each_method = pytest.mark.parametrize("name", METHODS)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _blocks_of_three_rows(monkeypatch):
    monkeypatch.setitem(matmul.BLOCK_ELEMENTS, "cpu", 3 * SIZE)


@dataclass(frozen=True)
class Batch:
    """N tokens of a student and a teacher whose heads both have the endings. `guidance` says which are a prefix."""

    hidden: Tensor
    head: Head
    teacher_hidden: Tensor
    teacher_head: Head
    tokens: Tensor
    uniforms: Tensor
    guidance: Tensor

    @property
    def endings(self) -> tuple[int, ...]:
        return self.head.endings

    @property
    def leaves(self) -> list[Tensor]:
        return [leaf for leaf in (self.hidden, self.head.weight, self.head.bias) if leaf is not None]

    def with_endings(self, endings: Sequence[int]) -> "Batch":
        head, teacher = (replace(head, endings=tuple(endings)) for head in (self.head, self.teacher_head))
        return replace(self, head=head, teacher_head=teacher)


def a_batch(endings: tuple[int, ...], option: str = "everything", dtype: torch.dtype = torch.float64) -> Batch:
    random = torch.Generator().manual_seed(8)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

    options = dict(OPTIONS[option])
    weight, bias = normal(SIZE, WIDTH).requires_grad_(True), normal(SIZE).requires_grad_(True)
    return Batch(
        hidden=normal(NUM, WIDTH).requires_grad_(True),
        head=Head(weight, bias if options.pop("bias", False) else None, **options, endings=endings),
        teacher_hidden=normal(NUM, 3),
        teacher_head=Head(normal(SIZE, 3), temperature=options.get("temperature", 1.0), endings=endings),
        tokens=torch.arange(3, 3 + NUM) * 5 % SIZE,
        uniforms=torch.rand(NUM, generator=random, dtype=torch.float64),
        guidance=(torch.arange(NUM) < PREFIX).double(),
    )


# Ours, from the states to the losses, as a batch is built.


def signals_of(batch: Batch, method: Method, trusted: bool = True) -> TokenSignals:
    """`trusted` answers the entropy gates; a prefix is there where the method has guidance."""
    with torch.no_grad():
        rollout, _ = objective.sampled_logps(batch.hidden, batch.head, batch.tokens)
        teacher, _ = objective.sampled_logps(batch.teacher_hidden, batch.teacher_head, batch.tokens)
    selected = torch.full(rollout.shape, trusted)
    if method.gate == "support" and method.support == "teacher":  # in a union the loss finds what is in it
        top = objective.topk_logps(batch.teacher_hidden, batch.teacher_head, min(method.fkl_top_k, SIZE))
        selected = objective.in_support(events_of(batch.tokens, batch.endings), *top)
    trust = objective.trust_weight(
        method.gate, teacher - rollout, uniforms=batch.uniforms, tau=method.outlier_tau, selected=selected
    )
    guidance = batch.guidance.to(trust.dtype) * bool(method.guidance_beta)
    student = 1 - guidance
    return TokenSignals(rollout, teacher, trust * student, (1 - trust) * student, guidance)


def direct_of(batch: Batch, method: Method, signals: TokenSignals) -> objective.DirectTerm | None:
    everywhere = signals.trust_weight if method.trust != "k1" or method.baseline != "none" else 0
    index = (signals.outlier_weight + everywhere > 0).nonzero().squeeze(-1)
    states, head = batch.teacher_hidden[index], batch.teacher_head
    if method.needs_full_teacher:
        sampled = events_of(batch.tokens, batch.endings)
        return objective.full_term(method, signals, index, states, head, sampled)
    if not method.needs_topk:
        return None
    ids, logp = objective.topk_logps(states, head, min(method.fkl_top_k, head.vocab_size))
    return objective.topk_term(method, signals, index, ids.int(), logp)


@dataclass(frozen=True)
class Outcome:
    """What one path makes of a batch: the scalar, log π̄_S, each token's loss, the gradients of the leaves."""

    loss: Tensor
    logp: Tensor
    tokens: Tensor
    gradients: tuple[Tensor, ...]


def by_token(batch: Batch, method: Method, signals: TokenSignals, direct=None, slice_tokens: int = 6) -> Outcome:
    logp, values, _ = objective.student_terms(batch.hidden, batch.head, batch.tokens, direct, slice_tokens=slice_tokens)
    losses = objective.token_losses(method, signals, logp, values)
    loss = objective.reduce_losses(losses, counts_of(signals), method.reduction)
    return _outcome(batch, loss, logp, losses)


def fused(batch: Batch, method: Method, signals: TokenSignals, direct=None, slice_tokens: int = 5) -> Outcome:
    settings = (method, signals, counts_of(signals), direct)
    ours = objective.fused_loss(
        batch.hidden, batch.head, batch.tokens, *settings, every_token=True, slice_tokens=slice_tokens
    )
    return _outcome(batch, ours.loss, ours.student_logp, ours.losses)


def counts_of(signals: TokenSignals) -> RegionCounts:
    return RegionCounts(*objective.region_counts(signals).tolist())


def _outcome(batch: Batch, loss: Tensor, logp: Tensor, losses: objective.TokenLosses) -> Outcome:
    total = sum(getattr(losses, region) for region in REGIONS)
    gradients = torch.autograd.grad(loss, batch.leaves)
    return Outcome(loss.detach(), logp.detach(), total.detach(), gradients)


PATHS = (by_token, fused)


def both(batch: Batch, method: Method, trusted: bool = True) -> list[Outcome]:
    signals = signals_of(batch, method, trusted)
    direct = direct_of(batch, method, signals)
    return [path(batch, method, signals, direct) for path in PATHS]


def assert_equal(first: Outcome, second: Outcome, tolerance: float) -> None:
    pairs = [(first.loss, second.loss), (first.logp, second.logp), (first.tokens, second.tokens)]
    for mine, theirs in [*pairs, *zip(first.gradients, second.gradients, strict=True)]:
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance, check_dtype=False)


# The twin: everything over events, the gradient by the chain rule to ids and through the head.


class Twin:
    """Student and teacher of a batch in NumPy, over events; `fine` is the student over ids."""

    def __init__(self, batch: Batch):
        self.batch = batch
        self.fine = twin_logps(batch.hidden, batch.head)
        self.student = np.array([coarsened(row, batch.endings) for row in self.fine])
        self.teacher = np.array(
            [coarsened(row, batch.endings) for row in twin_logps(batch.teacher_hidden, batch.teacher_head)]
        )
        self.events = [events_of_ids(SIZE, batch.endings)[token] for token in batch.tokens.tolist()]
        self.logp = [self.student[n, event] for n, event in enumerate(self.events)]

    def token(self, n: int, name: str, overrides: dict, prefix: bool) -> tuple[float, Array, bool]:
        """Loss of token n, its gradient by event, and whether its K1 advantage is other than zero."""
        student, teacher, x = self.student[n], self.teacher[n], self.events[n]
        if prefix and name == "tropd_released":
            advantage = GUIDANCE * (student[x] - teacher[x])
            return -advantage, advantage * reference.guidance_gradient(student, x, 1.0), True
        if prefix:
            return -GUIDANCE * student[x], reference.guidance_gradient(student, x, GUIDANCE), True
        settings = settings_of(name, **{key: value for key, value in overrides.items() if key != "selected"})
        if name in reference.SUPPORTED:
            return *reference.support_term(student, teacher, x, settings), True
        if name in reference.GATED:
            trust = reference.trust_weight(
                teacher[x] - student[x],
                settings.gate,
                uniform=self.batch.uniforms[n].item(),
                threshold=settings.threshold,
            )
            printed = reference.topk_forward_kl(student, teacher, settings.k, settings.truncation)
            advantage = outlier_advantage(teacher[x] - student[x], trust, settings, printed)
            weight = 1 - trust if settings.outlier in ("fkl_direct", "rkl_direct") else 0.0
        else:
            advantages, weight = terms(name, student, teacher, settings, overrides.get("selected", True))
            advantage = advantages[x]
        score = -np.exp(student)
        score[x] += 1.0
        loss, gradient = -advantage, -advantage * score
        if weight:
            loss += weight * direct_value(name, student, teacher, settings)
            gradient += weight * direct_gradient(name, student, teacher, settings)
        return loss, gradient, advantage != 0

    def outcome(self, method: Method, overrides: dict) -> Outcome:
        prefixed = [bool(method.guidance_beta) and n < PREFIX for n in range(NUM)]
        tokens = [self.token(n, method.name, overrides, prefixed[n]) for n in range(NUM)]
        losses, by_event, chosen = zip(*tokens, strict=True)
        # REOPOLD's mean is over the tokens that are trusted, the others over all.
        count = sum(chosen) if method.reduction == "selected" else NUM
        return self.of_tokens(losses, by_event, count)

    def of_tokens(self, losses: Sequence[float], by_event: Sequence[Array], count: int = NUM) -> Outcome:
        """Losses and their gradients by event, token by token, summed and divided by `count`."""
        loss, by_event = sum(losses) / max(count, 1), [gradient / max(count, 1) for gradient in by_event]
        values = (torch.tensor(value, dtype=torch.float64) for value in (loss, self.logp, losses))
        return Outcome(*values, self.gradients(by_event))

    def gradients(self, by_event: Sequence[Array]) -> tuple[Tensor, ...]:
        """Of the states, the weight and the bias, from those in the logits of π̄_S."""
        spread = [spread_over_ids(g, row, self.batch.endings) for g, row in zip(by_event, self.fine, strict=True)]
        return through_the_head(self.batch, np.array(spread))


def through_the_head(batch: Batch, in_logits: Array) -> tuple[Tensor, ...]:
    """Gradients of the leaves from those of the logits [N, V] that the softmax sees."""
    hidden, *others = (leaf.detach().double().numpy() for leaf in batch.leaves)
    weight, head = others[0], batch.head
    raw = hidden @ weight.T + (others[1] if head.bias is not None else 0.0)
    slope = np.full_like(raw, head.logit_scale / head.temperature)
    if head.softcap is not None:
        slope *= 1 - np.tanh(raw * head.logit_scale / head.softcap) ** 2
    in_raw = in_logits * slope
    return tuple(map(torch.tensor, (in_raw @ weight, in_raw.T @ hidden, in_raw.sum(0))))[: len(batch.leaves)]


def method_of(case: str) -> tuple[Method, bool, dict]:
    """The method of a case of the enumeration, what the entropy gates answer, and the twin's settings."""
    name, changes, overrides = CASES[case]
    method = get_method(name, **changes, **({"guidance_beta": GUIDANCE} if METHODS[name].guided else {}))
    selected = overrides.get("selected", True)
    trusted = not selected if method.gate == "teacher_entropy" else selected
    return method.stage(1.0) if overrides.get("phase") == 2 else method, trusted, overrides


@each_set
@each_case
def test_losses_and_gradients_are_those_of_the_twin_over_events(case, endings):
    method, trusted, overrides = method_of(case)
    batch = a_batch(endings)
    expected = Twin(batch).outcome(method, overrides)
    for ours in both(batch, method, trusted):
        assert_equal(ours, expected, 1e-12)


@pytest.mark.parametrize("option", [option for option in OPTIONS if option != "everything"])
@some_cases
def test_so_they_are_under_scale_softcap_and_temperature_alone(case, option):
    method, trusted, overrides = method_of(case)
    batch = a_batch(ENDINGS["three"], option)
    for ours in both(batch, method, trusted):
        assert_equal(ours, Twin(batch).outcome(method, overrides), 1e-12)


@pytest.mark.parametrize("option", ["scale and temperature", "everything"])
@each_case
def test_so_they_are_in_single_precision(case, option):
    """Logits of a few units, sums of eleven: about 1e-6 in each token's values, and in the sums of thirteen 1e-5.

    A teacher's mass outside of its top-k is what is left of 1, and its logarithm is the less exact the smaller it is.
    """
    method, trusted, overrides = method_of(case)
    batch = a_batch(ENDINGS["three"], option, torch.float32)
    for ours in both(batch, method, trusted):
        assert ours.loss.dtype == ours.logp.dtype == ours.gradients[1].dtype == torch.float32
        tolerance = 1e-4 if method.gate == "support" or method.baseline != "none" else 1e-5  # sums over the vocabulary
        assert_equal(ours, Twin(batch).outcome(method, overrides), tolerance)


@some_cases
def test_in_bfloat16_the_gradient_is_within_a_hundredth_of_its_length(case):
    method, trusted, overrides = method_of(case)
    batch = a_batch(ENDINGS["three"], "scale and temperature", torch.bfloat16)
    expected = Twin(batch).outcome(method, overrides)
    for ours in both(batch, method, trusted):
        torch.testing.assert_close(ours.tokens.double(), expected.tokens, rtol=0, atol=1e-4)
        for mine, true in zip(ours.gradients, expected.gradients, strict=True):
            assert mine.dtype == torch.bfloat16 and (mine.double() - true).norm() <= 0.01 * true.norm()


@each_set
def test_the_batch_is_an_example_of_everything(endings):
    batch = a_batch(endings)
    twin, stop = Twin(batch), SIZE - len(endings)
    method = get_method("tropd", fkl_top_k=3)
    signals = signals_of(batch, method)
    assert set(batch.tokens.tolist()) == set(range(SIZE))
    assert 0 < signals.trust_weight.sum() < NUM - PREFIX
    assert len({stop in reference.top_k(row, 3) for row in twin.teacher}) == 2
    assert np.ptp([row[stop] for row in twin.student]) > 1


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sizes", [(9,), (14,), (9, 11, 14)], ids=str)
@pytest.mark.parametrize("option", ["scale and temperature", "everything"])
@pytest.mark.parametrize("endings", [(8, 1), (7, 2, 4)], ids=str)
def test_padded_vocabularies_and_several_teachers_are_compared_event_by_event(endings, option, sizes, beta):
    """What both vocabularies have is renormalised; the endings of every model are among it."""
    method, batch, random = get_method("gkd", jsd_beta=beta), a_batch(endings, option), torch.Generator().manual_seed(2)
    twin, terms, values, by_id = Twin(batch), [], np.zeros(NUM), np.zeros((NUM, SIZE))
    for number, size in enumerate(sizes):
        index = torch.arange(number, NUM, len(sizes))
        weight, states = (torch.randn(rows, 3, generator=random, dtype=torch.float64) for rows in (size, len(index)))
        head, shared = Head(weight, temperature=0.9, endings=endings), min(size, SIZE)
        terms.append(FullVocabularyTerm(index, states, head, objective.full_function(method)))
        for n, teacher in zip(index.tolist(), twin_logps(states, head), strict=True):
            fine = log_softmax(twin.fine[n, :shared])
            pair = coarsened(fine, endings), coarsened(log_softmax(teacher[:shared]), endings)
            values[n] = reference.generalised_jsd(*pair, beta)
            by_id[n, :shared] = spread_over_ids(reference.jsd_gradient(*pair, beta), fine, endings) / NUM
    signals = TokenSignals(*torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0]).double()[:, None].expand(5, NUM))
    direct = terms[0] if len(terms) == 1 else SeveralTerms(tuple(terms))
    expected = replace(twin.of_tokens(values, np.zeros_like(twin.student)), gradients=through_the_head(batch, by_id))
    for path in PATHS:
        assert_equal(path(batch, method, signals, direct), expected, 1e-12)


@each_method
def test_both_paths_agree_on_a_student_that_has_moved_and_on_rewards(name):
    method, batch = get_method(name), a_batch(ENDINGS["three"])
    signals = signals_of(batch, method)
    moved = signals.rollout_logp + 0.3 * torch.linspace(-1, 1, NUM).double()
    signals = replace(signals, rollout_logp=moved, reward_advantage=torch.linspace(-2, 2, NUM).double())
    direct = direct_of(batch, method, signals)
    assert_equal(fused(batch, method, signals, direct), by_token(batch, method, signals, direct), 1e-12)


# Enumeration: every id is sampled with its own probability, every outcome of the gate with its own.


V = 6
STUDENT, TEACHER = pair(5)


def at_one_state(tokens: list[int], uniforms: list[float], endings, temperature, student=STUDENT, teacher=TEACHER):
    """A batch of one state, its logits given: identity heads make states logits."""
    head = Head(torch.eye(V, dtype=torch.float64), temperature=temperature, endings=endings)
    states = [torch.tensor(logits).repeat(len(tokens), 1) for logits in (student, teacher)]
    chances = torch.tensor(uniforms, dtype=torch.float64)
    return Batch(states[0].requires_grad_(True), head, states[1], head, torch.tensor(tokens), chances, 0 * chances)


def expected_over_ids(method: Method, endings, trusted: bool = True, temperature: float = 1.0) -> Array:
    """Σ over ids x, and over the gate, of P(x, gate) times our gradient in the student's own logits [V]."""
    fine, teacher = (log_softmax(logits, temperature=temperature) for logits in (STUDENT, TEACHER))
    ratios = coarsened(teacher, endings) - coarsened(fine, endings)
    outcomes = []
    for x, event in enumerate(events_of_ids(V, endings)):
        trust = reference.trust_probability(ratios[event])
        split = [(trust, trust / 2), (1 - trust, (1 + trust) / 2)] if method.gate == "bernoulli" else [(1.0, 0.0)]
        outcomes += [(math.exp(fine[x]) * chance, x, uniform) for chance, uniform in split if chance > 0]
    chances, tokens, uniforms = map(list, zip(*outcomes, strict=True))
    assert math.fsum(chances) == pytest.approx(1)
    batch = at_one_state(tokens, uniforms, endings, temperature)
    signals = signals_of(batch, method, trusted)
    logp, values, _ = objective.student_terms(batch.hidden, batch.head, batch.tokens, direct_of(batch, method, signals))
    losses = objective.token_losses(method, signals, logp, values)
    (gradient,) = torch.autograd.grad(sum(getattr(losses, region).sum() for region in REGIONS), batch.hidden)
    return np.array(chances) @ gradient.numpy()


@pytest.mark.parametrize("endings", [(1, 4), (5, 0), (4, 0, 3), tuple(range(V))], ids=str)
@each_case
def test_our_estimator_averages_over_ids_to_the_gradient_over_events(case, endings):
    method, trusted, overrides = method_of(case)
    fine, teacher = (log_softmax(logits, temperature=0.7) for logits in (STUDENT, TEACHER))
    by_event = reference.expected_gradient(
        CASES[case][0], coarsened(fine, endings), coarsened(teacher, endings), **overrides
    )
    ours = expected_over_ids(method, endings, trusted, temperature=0.7)
    assert ours == pytest.approx(spread_over_ids(by_event, fine, endings) / 0.7, abs=1e-12)
    assert ours.sum() == pytest.approx(0.0, abs=1e-13)


@pytest.mark.parametrize("endings", [(1, 4), (4, 0, 3)], ids=str)
@pytest.mark.parametrize(
    ("name", "objective_of_events"),
    [
        ("opd", reference.reverse_kl),
        ("gkd", reference.reverse_kl),
        ("fkl", reference.forward_kl),
    ],
)
def test_opd_gkd_and_fkl_descend_the_divergence_of_events_and_not_of_ids(name, objective_of_events, endings):
    teacher = log_softmax(TEACHER)
    of_events, of_ids = (
        reference.differences(
            lambda z, E=E: objective_of_events(coarsened(log_softmax(z), E), coarsened(teacher, E)), STUDENT
        )
        for E in (endings, ())
    )
    ours = expected_over_ids(get_method(name), endings)
    assert ours == pytest.approx(of_events, abs=1e-8)  # central differences
    assert np.abs(ours - of_ids).max() > 0.01


# Laws.


def random_logits(seed: int, num: int = 50, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(num, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@each_set
@pytest.mark.parametrize("with_gradient", [False, True])
def test_it_is_a_distribution_over_one_event_fewer_for_each_further_ending(endings, with_gradient):
    logits, rest = random_logits(0), [v for v in range(SIZE) if v not in endings]
    probs, kept = logits.softmax(-1), logits.clone()
    merged = one_action(logits.requires_grad_(with_gradient), endings).detach().softmax(-1)
    torch.testing.assert_close(merged.sum(-1), torch.ones(50).double(), rtol=0, atol=1e-15)
    assert ((merged > 0).sum(-1) == SIZE - len(endings) + 1).all()
    assert (merged[:, endings[1:]] == 0).all()
    torch.testing.assert_close(merged[:, rest], probs[:, rest], rtol=0, atol=1e-15)
    torch.testing.assert_close(merged[:, endings[0]], probs[:, list(endings)].sum(-1), rtol=0, atol=1e-15)
    assert torch.equal(logits.detach(), kept) == with_gradient, "in place where nothing is differentiated"


@each_set
@pytest.mark.parametrize("spread", [0.5, 3.0, 20.0])
def test_no_divergence_of_events_exceeds_that_of_ids(endings, spread):
    def divergences(endings) -> Tensor:
        student, teacher = (one_action(random_logits(seed, spread=spread), endings).log_softmax(-1) for seed in (1, 2))
        variation = 0.5 * (student.exp() - teacher.exp()).abs().sum(-1)
        jensen = objective.generalized_jsd(student, teacher, 0.4)
        return torch.stack(
            [objective.reverse_kl(student, teacher), objective.forward_kl(student, teacher), jensen, variation]
        )

    coarse, fine = divergences(endings), divergences(())
    assert (coarse <= fine + 1e-13).all() and (coarse >= -1e-15).all()
    assert (coarse < fine - 1e-6).any(-1).all()


def permuted(batch: Batch) -> Batch:
    """Its teacher is the student, but for the endings, which trade places."""
    ids = torch.arange(SIZE)
    ids[list(batch.endings)] = ids[list(batch.endings[1:] + batch.endings[:1])]
    head = replace(batch.head, weight=batch.head.weight.detach()[ids], bias=batch.head.bias.detach()[ids])
    return replace(batch, teacher_hidden=batch.hidden.detach(), teacher_head=head)


@each_set
@pytest.mark.parametrize("name", WITHOUT_TOPK)
def test_a_teacher_that_ends_by_another_id_of_the_set_and_agrees_otherwise_teaches_nothing(name, endings):
    batch, method = permuted(a_batch(endings)), get_method(name)
    batch = replace(batch, guidance=0 * batch.guidance)
    if method.advantage == "sign":
        pytest.skip("the sign of a rounding error is 1")
    signals = signals_of(batch, method)
    torch.testing.assert_close(signals.log_ratio, 0 * signals.log_ratio, rtol=0, atol=1e-14)
    assert objective.trust_probability(signals.log_ratio).min() > 1 - 1e-14
    for ours in both(batch, method):
        for value in (ours.loss, ours.tokens, *ours.gradients):
            assert value.abs().max() < 1e-14
    apart = batch.with_endings(())
    signals = signals_of(apart, get_method("opd"))
    ended = torch.isin(apart.tokens, torch.tensor(endings))
    assert (signals.log_ratio[ended].abs() > 0.01).all() and (signals.log_ratio[~ended].abs() < 1e-14).all()
    assert fused(apart, get_method("opd"), signals).gradients[1].abs().max() > 0.01


@some_cases
def test_the_order_of_the_endings_and_which_is_first_do_not_matter(case):
    method, trusted, _ = method_of(case)
    expected = both(a_batch((2, 4, 7)), method, trusted)
    for order in itertools.permutations((2, 4, 7)):
        for ours, theirs in zip(both(a_batch(order), method, trusted), expected, strict=True):
            assert_equal(ours, theirs, 1e-13)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("endings", [(), (4,)], ids=str)
def test_one_ending_or_none_changes_no_bit_of_what_a_head_says(endings, dtype, option):
    batch = a_batch((), option, dtype)
    head = replace(batch.head, endings=endings)

    def everything(head: Head) -> list[Tensor]:
        with torch.no_grad():
            found = [*objective.sampled_logps(batch.hidden, head, batch.tokens), head.logits(batch.hidden)]
        found += objective.topk_logps(batch.hidden, head, 3)
        logp, entropy = objective.sampled_logps(batch.hidden, head, batch.tokens, slice_tokens=4)
        return [*found, head.logits(batch.hidden), logp, *torch.autograd.grad((logp - entropy).sum(), batch.leaves)]

    for mine, theirs in zip(everything(head), everything(batch.head), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("endings", [(), (4,)], ids=str)
@each_method
def test_one_ending_or_none_changes_no_bit_of_any_loss_or_gradient(name, endings, dtype):
    plain = a_batch((), dtype=dtype)
    for one, none in zip(
        both(plain.with_endings(endings), get_method(name)), both(plain, get_method(name)), strict=True
    ):
        for mine, theirs in zip(vars(one).values(), vars(none).values(), strict=True):
            assert all(map(torch.equal, mine, theirs)) if isinstance(mine, tuple) else torch.equal(mine, theirs)


@pytest.mark.parametrize("with_gradient", [False, True])
def test_one_ending_that_is_impossible_stays_so(with_gradient):
    hidden = torch.zeros(2, 3, requires_grad=with_gradient)
    head = Head(torch.eye(3), torch.tensor([0.0, -math.inf, 0.0]), endings=(1,))
    assert (head.logits(hidden)[:, 1] == -math.inf).all()


@each_set
@pytest.mark.parametrize("name", ["gkd 0.0", "gkd 0.3", "gkd 1.0"])
def test_a_teacher_in_double_precision_is_read_by_a_student_in_single(name, endings):
    """What no outcome has must stay finite in both, or 0 times infinity is a loss."""
    method, trusted, _ = method_of(name)
    batch = a_batch(endings, dtype=torch.float32)
    head = batch.teacher_head
    teacher = replace(head, weight=head.weight.double(), bias=None if head.bias is None else head.bias.double())
    mixed = replace(batch, teacher_head=teacher, teacher_hidden=batch.teacher_hidden.double())
    for ours, theirs in zip(both(mixed, method, trusted), both(batch, method, trusted), strict=True):
        assert_equal(ours, theirs, 1e-5)


# What a head says, beside the twin.


@each_set
@pytest.mark.parametrize("option", OPTIONS)
def test_log_probabilities_and_entropies_are_of_events(option, endings):
    batch = a_batch(endings, option)
    twin = Twin(batch)
    with torch.no_grad():
        scanned = objective.sampled_logps(batch.hidden, batch.head, batch.tokens, slice_tokens=4)
    for logp, entropy in (scanned, objective.sampled_logps(batch.hidden, batch.head, batch.tokens, slice_tokens=4)):
        assert logp.tolist() == pytest.approx(twin.logp, abs=1e-12)
        assert entropy.tolist() == pytest.approx([reference.entropy(row) for row in twin.student], abs=1e-12)
    assert all(
        reference.entropy(coarse) < reference.entropy(fine)
        for coarse, fine in zip(twin.student, twin.fine, strict=True)
    )


@each_set
@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("beyond", [0, 2])
def test_the_topk_holds_the_endings_as_one_entry_with_their_summed_mass(endings, k, beyond):
    """Among the ids that the student has too, `beyond` fewer; the endings of both are among these."""
    batch, event_of = a_batch(endings), events_of_ids(SIZE, endings)
    limit = max(SIZE - beyond, max(endings) + 1)
    ids, logp = objective.topk_logps(batch.teacher_hidden, batch.teacher_head, k, vocab_limit=limit)
    allowed = {event_of[v] for v in range(limit)}
    for n, row in enumerate(Twin(batch).teacher):
        best = [event for event in reference.top_k(row, SIZE) if event in allowed][:k]
        assert [event_of[v] for v in ids[n].tolist()] == best
        assert not set(ids[n].tolist()) & set(endings[1:]), "the first stands for all"
        assert logp[n].tolist() == pytest.approx(row[best].tolist(), abs=1e-12)


@pytest.mark.parametrize("truncation", reference.TRUNCATIONS)
@pytest.mark.parametrize("k", [SIZE - 2, SIZE - 1, SIZE])
def test_a_topk_of_all_events_or_of_all_ids_is_the_whole_forward_kl_of_events(k, truncation):
    """Nine events; what is beyond them has probability 0 and adds nothing, in either pass and in either precision."""
    method = get_method("fkl", fkl_top_k=k, fkl_truncation=truncation)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        batch = a_batch(ENDINGS["three"], dtype=dtype)
        twin = Twin(batch)
        expected = [reference.forward_kl(*rows) for rows in zip(twin.student, twin.teacher, strict=True)]
        by_event = [(np.exp(s) - np.exp(t)) / NUM for s, t in zip(twin.student, twin.teacher, strict=True)]
        for ours in both(batch, method):
            assert ours.tokens.tolist() == pytest.approx(expected, abs=tolerance)
            for mine, theirs in zip(ours.gradients, twin.gradients(by_event), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance, check_dtype=False)


@pytest.mark.parametrize("option", ["plain", "everything"])
def test_gradients_are_those_of_finite_differences(option):
    batch = a_batch(ENDINGS["three"], option)

    def said(*leaves: Tensor) -> tuple[Tensor, ...]:
        head = replace(batch.head, weight=leaves[1], bias=leaves[2] if len(leaves) > 2 else None)
        merged = head.logits(leaves[0]).log_softmax(-1).exp()
        return *objective.sampled_logps(leaves[0], head, batch.tokens[:3], slice_tokens=2), merged

    assert torch.autograd.gradcheck(said, (batch.hidden[:3].detach().requires_grad_(True), *batch.leaves[1:]))


# Edges.


def without_ids(batch: Batch, gone: tuple[int, ...], endings: Sequence[int]) -> Batch:
    """The batch in a vocabulary that never had the ids `gone`; every token must be another."""
    rest = [v for v in range(SIZE) if v not in gone]
    student = [leaf.detach()[rest].requires_grad_(True) for leaf in (batch.head.weight, batch.head.bias)]
    place = tuple(rest.index(e) for e in endings)
    return replace(
        batch,
        head=replace(batch.head, weight=student[0], bias=student[1], endings=place),
        teacher_head=replace(batch.teacher_head, weight=batch.teacher_head.weight[rest], bias=None, endings=place),
        tokens=torch.tensor([rest.index(token) for token in batch.tokens.tolist()]),
    )


@pytest.mark.parametrize("gone", [(2,), (7, 4), (7, 2, 4)], ids=["another than the first", "the first too", "all"])
@some_cases
def test_endings_of_logit_minus_infinity_are_as_if_they_were_not_in_the_vocabulary(case, gone):
    method, trusted, _ = method_of(case)
    batch = a_batch((7, 2, 4), "scale and temperature")
    batch = replace(batch, tokens=torch.where(torch.isin(batch.tokens, torch.tensor(gone)), 5, batch.tokens))
    bias = torch.linspace(-1, 1, SIZE).double()
    batch = replace(batch, head=replace(batch.head, bias=bias.requires_grad_(True)))
    expected = both(without_ids(batch, gone, [e for e in (7, 2, 4) if e not in gone]), method, trusted)
    rest = [v for v in range(SIZE) if v not in gone]
    student, teacher = bias.detach().clone(), torch.zeros(SIZE).double()
    student[list(gone)] = teacher[list(gone)] = -math.inf
    impossible = replace(
        batch,
        head=replace(batch.head, bias=student.requires_grad_(True)),
        teacher_head=replace(batch.teacher_head, bias=teacher),
    )
    for ours, theirs in zip(both(impossible, method, trusted), expected, strict=True):
        for gradient in ours.gradients[1:]:
            assert (gradient[list(gone)] == 0).all()
        shared = (ours.gradients[0], *(gradient[rest] for gradient in ours.gradients[1:]))
        assert_equal(replace(ours, gradients=shared), theirs, 1e-12)
    with torch.no_grad():
        _, entropy = objective.sampled_logps(impossible.hidden, impossible.head, impossible.tokens)
    assert entropy.isfinite().all()


EXTREMES = {
    "sure of one ending": (60.0, -60.0, -60.0),
    "sure of two": (60.0, 60.0, -60.0),
    "sure of none": (-60.0, -60.0, -60.0),
    "sure of none, another nearly impossible": (-60.0, 0.0, -60.0),
}


@pytest.mark.parametrize("teacher", EXTREMES)
@pytest.mark.parametrize("student", EXTREMES)
@some_cases
def test_an_ending_of_probability_almost_one_or_almost_zero_has_finite_gradients(case, student, teacher):
    method, trusted, _ = method_of(case)
    endings, outcomes = (4, 0, 3), []
    logits = [np.array([0.3, -0.2, 1.1, 0.0, 0.5, -0.7]) for _ in range(2)]
    for row, extreme in zip(logits, (student, teacher), strict=True):
        row[list(endings)] = EXTREMES[extreme]
    for dtype in (torch.float64, torch.float32):
        batch = at_one_state(list(range(V)), [0.4] * V, endings, 1.0, *logits)
        head = replace(batch.head, weight=torch.eye(V, dtype=dtype).requires_grad_(True))
        hidden, teacher_hidden = batch.hidden.detach().to(dtype).requires_grad_(True), batch.teacher_hidden.to(dtype)
        teacher_head = replace(batch.teacher_head, weight=torch.eye(V, dtype=dtype))
        batch = replace(batch, hidden=hidden, head=head, teacher_hidden=teacher_hidden, teacher_head=teacher_head)
        outcomes += both(batch, method, trusted)
    for ours in outcomes:
        assert all(value.isfinite().all() for value in (ours.loss, ours.logp, ours.tokens, *ours.gradients))
        for mine, exact in zip(ours.gradients, outcomes[0].gradients, strict=True):
            torch.testing.assert_close(mine, exact, rtol=1e-5, atol=5e-4, check_dtype=False)


@pytest.mark.parametrize("endings", [(1, 1), (0, 5), (-1, 2), (3, 4, 3)], ids=str)
def test_endings_given_twice_or_beyond_the_vocabulary_are_refused_in_words(endings):
    with pytest.raises(ValueError) as refused:
        Head(torch.zeros(5, 2), endings=endings)
    assert str(refused.value) == f"endings are {endings}; give distinct ids from 0 to 4"


def test_an_unreadable_token_stays_unreadable():
    assert events_of(torch.tensor([[-1, 3], [8, 2]]), (8, 3, 0)).tolist() == [[-1, 8], [8, 2]]


def test_tokens_are_read_as_they_were_given():
    batch = a_batch(ENDINGS["two"])
    before = batch.tokens.clone()
    both(batch, get_method("tropd"))
    assert torch.equal(batch.tokens, before)


@pytest.mark.parametrize("name", ["tropd", "gkd"])
def test_logits_of_all_tokens_are_never_held_at_once(name):
    """Of 60 tokens; 8 at once."""
    batch, method = a_batch(ENDINGS["three"]), get_method(name)
    batch = replace(
        batch,
        hidden=batch.hidden.detach().repeat(5, 1)[:60].requires_grad_(True),
        teacher_hidden=batch.teacher_hidden.repeat(5, 1)[:60],
        tokens=torch.arange(60) % SIZE,
        uniforms=batch.uniforms.repeat(5)[:60],
        guidance=torch.zeros(60),
    )
    signals = signals_of(batch, method)
    direct = direct_of(batch, get_method(name, **({"fkl_top_k": 3} if name == "tropd" else {})), signals)
    for path in PATHS:
        with LargestTensor() as probe:
            path(batch, method, signals, direct, slice_tokens=8)
        assert probe.elements <= 60 * WIDTH < 60 * SIZE


# A teacher in this process.


CONTEXTS = [[5, 6, 7], [8], [9, 10, 11, 12]]
RESPONSES = [[20, 21, EOS], [22, 40, 24, 25, 26], [31]]
ALL = [[True] * len(response) for response in RESPONSES]
FLAT = [token for response in RESPONSES for token in response]
OF_TEACHER = (40, EOS, 31)


@pytest.fixture(scope="module")
def model():
    return tiny.llama(seed=3)


def everywhere(k: int) -> TopKRequest:
    return TopKRequest(k, 64, lambda logp, *_: torch.ones_like(logp, dtype=torch.bool))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_local_teachers_scores_are_logs_of_summed_probabilities(model, temperature):
    """Padded batches and single rows differ by the rounding of float32 sums, 1e-5."""
    scores = LocalTeacher(clone(model)).score(
        CONTEXTS,
        RESPONSES,
        ALL,
        pad_id=PAD,
        temperature=temperature,
        topk=everywhere(5),
        keep_hidden=True,
        endings=OF_TEACHER,
    )
    with torch.no_grad():
        rows = torch.cat([plain_logps(model, *row) for row in zip(CONTEXTS, RESPONSES, strict=True)])
    events = [events_of_ids(64, OF_TEACHER)[token] for token in FLAT]
    for n, row in enumerate((rows / temperature).log_softmax(-1).double().numpy()):
        coarse = coarsened(row, OF_TEACHER)
        assert scores.logp[n].item() == pytest.approx(coarse[events[n]], abs=1e-5)
        assert scores.entropy[n].item() == pytest.approx(reference.entropy(coarse), abs=1e-5)
        best = reference.top_k(coarse, 5)
        assert [events_of_ids(64, OF_TEACHER)[v] for v in scores.topk_ids[n].tolist()] == best
        assert scores.topk_logp[n].tolist() == pytest.approx(coarse[best].tolist(), abs=1e-5)
    (states,) = scores.states
    assert states.head.endings == OF_TEACHER and states.head.temperature == temperature


def test_without_endings_or_with_one_a_local_teachers_scores_keep_every_bit(model):
    teacher, common = LocalTeacher(clone(model)), {"pad_id": PAD, "topk": everywhere(5), "keep_hidden": True}
    before = teacher.score(CONTEXTS, RESPONSES, ALL, **common)
    for endings in ((), (EOS,)):
        now = teacher.score(CONTEXTS, RESPONSES, ALL, **common, endings=endings)
        for name in ("logp", "entropy", "topk_index", "topk_ids", "topk_logp"):
            assert torch.equal(getattr(now, name), getattr(before, name)), name


def test_an_id_that_a_local_teacher_has_no_row_for_has_no_score_beside_endings_either(model):
    """64 rows; what follows such an id has no context to be read in."""
    scores = LocalTeacher(clone(model)).score(
        [[5], [6]], [[40, 70, EOS], [22, EOS]], [[True] * 3, [True] * 2], pad_id=PAD, endings=OF_TEACHER
    )
    assert scores.logp.isfinite().tolist() == [True, False, False, True, True]
    assert (scores.logp[[1, 2]] == -math.inf).all()
