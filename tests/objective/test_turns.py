"""Weights of turns: against a twin, in the limit of one turn, and in expectation over every episode there is."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise, product

import numpy as np
import pytest
import torch

import reference
from reference import Array, log_softmax
from tropd import objective
from tropd.objective import (
    Head,
    RegionCounts,
    TokenSignals,
    get_method,
    takeover_probability,
    trust_probability,
    turn_mean_weights,
    turn_trust_weights,
)

RAGGED = [
    [[0.5, 1.5, None], [-2.0], [4.0, 0.25, 3.0]],
    [],
    [[1.0]],
    [[None], [], [7.0, -0.5]],
    [[None, None]],
]


def flat(episodes: list) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
    """Values, which of them count, and the lengths of the turns."""
    tokens = [x for episode in episodes for turn in episode for x in turn]
    values = torch.tensor([99.0 if x is None else x for x in tokens], dtype=torch.float64)
    counted = torch.tensor([x is not None for x in tokens], dtype=torch.bool)
    return values, counted, [[len(turn) for turn in episode] for episode in episodes]


@pytest.mark.parametrize("episodes", [RAGGED, RAGGED[:1], RAGGED[4:], [[]]], ids=["ragged", "one", "none", "empty"])
def test_a_mean_over_tokens_with_their_weights_is_the_mean_over_turns(episodes):
    values, counted, lengths = flat(episodes)
    weights = turn_mean_weights(counted, lengths).double()
    count = int(counted.sum())
    assert float(weights[counted].sum()) == pytest.approx(count, rel=1e-6)
    ours = float((weights * values)[counted].sum()) / max(count, 1)
    assert ours == pytest.approx(reference.per_turn_mean(episodes), rel=1e-6)


def test_the_trust_of_a_turn_is_the_mean_of_what_came_before_it():
    values, counted, lengths = flat(RAGGED)
    expected = [
        trust
        for episode in RAGGED
        for trust, turn in zip(reference.turn_trusts(episode), episode, strict=True)
        for _ in turn
    ]
    assert turn_trust_weights(values, counted, lengths).tolist() == pytest.approx(expected, rel=1e-6)


def test_a_turn_is_taken_over_as_often_as_trust_lacks():
    for episode in RAGGED:
        values, counted, _ = flat([episode])
        (expected,) = reference.takeover_probabilities([*episode, []], 0.7)[-1:]
        assert takeover_probability(values, counted, 0.7) == pytest.approx(expected, abs=1e-7)


def test_a_single_turn_and_a_teacher_that_accepts_everything_weigh_exactly_one():
    for length in (1, 3, 7, 1000):
        counted = torch.ones(2 * length, dtype=torch.bool)
        assert turn_mean_weights(counted, [[length], [length]]).eq(1.0).all()
        assert turn_trust_weights(torch.rand(2 * length), counted, [[length], [length]]).eq(1.0).all()
        assert turn_trust_weights(torch.ones(2 * length), counted, [[length - 1, 1, length]]).eq(1.0).all()


@pytest.mark.parametrize("weights_of", [turn_mean_weights, lambda c, n: turn_trust_weights(c.float(), c, n)])
def test_lengths_that_do_not_add_up_are_refused(weights_of):
    with pytest.raises(ValueError, match="add up to 3 tokens, but there are 4"):
        weights_of(torch.ones(4, dtype=torch.bool), [[2, 1]])


@pytest.mark.parametrize("name", ["tropd", "gkd", "fkl", "resopd"])
def test_the_fused_loss_weighs_every_part_that_the_teacher_teaches(name):
    """A factor of each token's loss: a batch weighed by w, token by token, is the sum of w times its losses."""
    method, generator = get_method(name), torch.Generator().manual_seed(3)
    tokens, vocab, width = 6, 5, 4

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, head, teacher = random(tokens, width), Head(random(vocab, width)), random(tokens, vocab)
    ids = torch.tensor([0, 1, 2, 3, 4, 0])
    teacher_logps = teacher.log_softmax(-1)
    rollout = head.logits(hidden).log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)
    trust = torch.tensor([1.0, 0, 1, 0, 0, 0]).double() if name != "fkl" else torch.zeros(6).double()
    guidance = torch.tensor([0.0, 0, 0, 0, 0, 1]).double() if method.guided else torch.zeros(6).double()
    logp = teacher_logps.gather(-1, ids[:, None]).squeeze(-1)
    weight = torch.tensor([1.0, 0.5, 2.0, 0.0, 0.25, 3.0]).double()
    # GKD without rewards has a closed form of its own.
    rewards = None if name == "gkd" else random(6)
    plain = TokenSignals(rollout, logp, trust, 1 - trust - guidance, guidance, rewards)
    weighed = TokenSignals(rollout, logp, trust, 1 - trust - guidance, guidance, rewards, weight)
    index = torch.arange(tokens)
    if method.needs_full_teacher:
        direct = objective.FullVocabularyTerm(
            index, teacher, Head(torch.eye(vocab).double()), objective.full_function(method)
        )
    else:
        top = teacher_logps.topk(2)
        direct = objective.topk_term(method, plain, index, top.indices, top.values)
    counts = RegionCounts(3.0, 2.0, 1.0)
    one, other = (
        objective.fused_loss(hidden.requires_grad_(True), head, ids, method, signals, counts, direct)
        for signals in (plain, weighed)
    )
    for part in ("trust", "outlier", "guidance"):
        torch.testing.assert_close(getattr(other.losses, part), weight * getattr(one.losses, part))
    assert torch.equal(other.losses.reward, one.losses.reward)
    ready = objective.student_terms(hidden, head, ids, direct)
    slow = objective.reduce_losses(objective.token_losses(method, weighed, *ready[:2]), counts)
    torch.testing.assert_close(other.loss, slow)
    for mine, theirs in zip(torch.autograd.grad(other.loss, hidden), torch.autograd.grad(slow, hidden), strict=True):
        torch.testing.assert_close(mine, theirs)


# ---------------------------------------------------------------------- every episode of a small world

END, V, TURNS, LENGTH = 0, 3, 2, 2
"""A turn ends with `END`, or at its second token; an episode has two of them."""

History = tuple[tuple[int, ...], ...]


def logits(history: History, whose: int) -> Array:
    """Any numbers, the same for the same state."""
    seed = [whose, *(token + 1 for turn in history for token in (*turn, V))]
    return np.random.default_rng(seed).normal(size=V)


def episodes(history: History = ((),), fixed: bool = False) -> Iterator[tuple[float, list[tuple[History, int]]]]:
    """(probability, (state, token) one after another) of every episode; turns of one length if `fixed`."""
    *before, turn = history
    if len(turn) == LENGTH or (not fixed and turn and turn[-1] == END):
        if len(history) == TURNS:
            yield 1.0, []
            return
        yield from episodes((*history, ()), fixed)
        return
    probs = np.exp(log_softmax(logits(history, 1)))
    for token in range(V):
        for probability, rest in episodes((*before, (*turn, token)), fixed):
            yield probs[token] * probability, [(history, token), *rest]


def expected_gradients(weigh: Callable[[TokenSignals, list[list[int]]], torch.Tensor], fixed: bool = False) -> dict:
    """E[∇ of the sum of opd's weighed losses] at every state, over every episode; by our own losses."""
    gradients: dict[History, Array] = {}
    for probability, steps in episodes(fixed=fixed):
        hidden = torch.tensor(np.stack([logits(state, 1) for state, _ in steps])).requires_grad_(True)
        teacher = torch.tensor(np.stack([log_softmax(logits(state, 2)) for state, _ in steps]))
        ids, head = torch.tensor([token for _, token in steps]), Head(torch.eye(V, dtype=torch.float64))
        rollout = hidden.detach().log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)
        one = torch.ones(len(steps), dtype=torch.float64)
        signals = TokenSignals(rollout, teacher.gather(-1, ids[:, None]).squeeze(-1), one, 0 * one, 0 * one)
        starts = [n for n, (state, _) in enumerate(steps) if not state[-1]] + [len(steps)]
        weight = weigh(signals, [[stop - start for start, stop in pairwise(starts)]])
        weighed = TokenSignals(*(getattr(signals, name) for name in FIELDS), turn_weight=weight.double())
        logp, direct, _ = objective.student_terms(hidden, head, ids)
        losses = objective.token_losses(get_method("opd"), weighed, logp, direct)
        (gradient,) = torch.autograd.grad(objective.reduce_losses(losses, RegionCounts(1.0, 0.0, 0.0)), hidden)
        for (state, _), row in zip(steps, gradient.numpy(), strict=True):
            gradients[state] = gradients.get(state, 0) + probability * row
    return gradients


FIELDS = ("rollout_logp", "teacher_logp", "trust_weight", "outlier_weight", "guidance_mask")


def state_gradient(state: History) -> Array:
    """∇KL(π_S ‖ π_T) of one state."""
    return reference.reverse_kl_gradient(log_softmax(logits(state, 1)), log_softmax(logits(state, 2)))


def chance(state: History) -> float:
    """That the student comes to the state."""
    logp = 0.0
    for number, turn in enumerate(state):
        for place, token in enumerate(turn):
            logp += log_softmax(logits((*state[:number], turn[:place]), 1))[token]
    return math.exp(logp)


def trust_of(state: History) -> float:
    """A of the state's turn, of the twin."""
    accepted = []
    for number, turn in enumerate(state[:-1]):
        ratios = []
        for place, token in enumerate(turn):
            here = (*state[:number], turn[:place])
            ratio = math.exp(log_softmax(logits(here, 2))[token] - log_softmax(logits(here, 1))[token])
            ratios.append(min(ratio, 1.0))
        accepted.append(ratios)
    return reference.turn_trusts([*accepted, []])[-1]


def by_trust(signals: TokenSignals, lengths: list[list[int]]) -> torch.Tensor:
    counted = torch.ones_like(signals.trust_weight, dtype=torch.bool)
    return turn_trust_weights(trust_probability(signals.log_ratio), counted, lengths)


def by_turn(signals: TokenSignals, lengths: list[list[int]]) -> torch.Tensor:
    return turn_mean_weights(torch.ones_like(signals.trust_weight, dtype=torch.bool), lengths)


def test_in_expectation_the_trust_of_a_turn_scales_the_gradient_of_a_state():
    """Known before the turn is written, it is the state's own: chance · A · ∇KL(π_S ‖ π_T), whatever the lengths."""
    found = expected_gradients(by_trust)
    assert len({round(trust_of(state), 6) for state in found}) > 5
    for state, gradient in found.items():
        expected = chance(state) * trust_of(state) * state_gradient(state)
        assert gradient == pytest.approx(expected, abs=1e-7), state


def test_in_expectation_a_mean_over_turns_of_fixed_lengths_leaves_a_states_gradient():
    for state, gradient in expected_gradients(by_turn, fixed=True).items():
        assert gradient == pytest.approx(chance(state) * state_gradient(state), abs=1e-7), state


def test_in_expectation_a_mean_over_turns_of_random_lengths_is_that_of_its_twin_and_no_states_gradient():
    """A token that ends its turn makes it short, and so weighs more: docs/equations.md says so."""
    twin: dict[History, Array] = {}
    for probability, steps in episodes():
        sizes = [sum(len(state) == number for state, _ in steps) for number in (1, 2)]
        for state, token in steps:
            student, teacher = log_softmax(logits(state, 1)), log_softmax(logits(state, 2))
            loss = -(teacher - student)[token] * (np.eye(V)[token] - np.exp(student))
            weight = sum(sizes) / 2 / sizes[len(state) - 1]
            twin[state] = twin.get(state, 0) + probability * weight * loss
    found = expected_gradients(by_turn)
    assert found.keys() == twin.keys()
    for state, gradient in found.items():
        assert gradient == pytest.approx(twin[state], abs=1e-7), state
    start = ((),)
    turned = np.dot(found[start], state_gradient(start)) / np.linalg.norm(found[start])
    assert turned / np.linalg.norm(state_gradient(start)) < 0.999


# ---------------------------------------------------------------------- turns that the teacher takes over

ALPHA, BETA, MANY = 0.8, 0.3, 3
STUDENT, TEACHER = 1, 2
Steps = list[tuple[History, int, int]]


def log_ratio(state: History, token: int) -> float:
    return float(log_softmax(logits(state, TEACHER))[token] - log_softmax(logits(state, STUDENT))[token])


def shared_episodes(steps: Steps, history: History = ((),), author: int = STUDENT) -> Iterator[tuple[float, Steps]]:
    """(probability, (state, token, author) one after another) of every episode, with our takeover probability."""
    *before, turn = history
    if len(turn) < LENGTH and not (turn and turn[-1] == END):
        probs = np.exp(log_softmax(logits(history, author)))
        for token in range(V):
            following = [*steps, (history, token, author)]
            for probability, whole in shared_episodes(following, (*before, (*turn, token)), author):
                yield probs[token] * probability, whole
    elif len(history) == MANY:
        yield 1.0, steps
    else:
        ratios = torch.tensor([0.0 if who == TEACHER else log_ratio(state, token) for state, token, who in steps])
        accepted = trust_probability(ratios)
        taken = takeover_probability(accepted, torch.ones_like(accepted, dtype=torch.bool), ALPHA)
        for who, chance_of_who in ((STUDENT, 1.0 - taken), (TEACHER, taken)):
            for probability, whole in shared_episodes(steps, (*history, ()), who):
                yield chance_of_who * probability, whole


def gradients_of_shared_episodes() -> dict[History, Array]:
    """E[∇ of the sum of the losses: K1 on the student's turns, all of them trusted, β NLL on the teacher's]."""
    found = list(shared_episodes([]))
    assert math.fsum(probability for probability, _ in found) == pytest.approx(1)
    steps = [step for _, episode in found for step in episode]
    weights = np.array([probability for probability, episode in found for _ in episode])
    hidden = torch.tensor(np.stack([logits(state, STUDENT) for state, _, _ in steps])).requires_grad_(True)
    ids = torch.tensor([token for _, token, _ in steps])
    teacher = torch.tensor([log_softmax(logits(state, TEACHER))[token] for state, token, _ in steps])
    guided = torch.tensor([float(who == TEACHER) for *_, who in steps]).double()
    rollout = hidden.detach().log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)
    signals = TokenSignals(rollout, teacher, 1 - guided, 0 * guided, guided)
    method = get_method("tropd_mask", guidance_beta=BETA)
    logp, direct, _ = objective.student_terms(hidden, Head(torch.eye(V, dtype=torch.float64)), ids)
    losses = objective.token_losses(method, signals, logp, direct)
    (gradient,) = torch.autograd.grad(objective.reduce_losses(losses, RegionCounts(1.0, 0.0, 0.0)), hidden)
    summed: dict[History, Array] = {}
    for (state, _, _), weight, row in zip(steps, weights, gradient.numpy(), strict=True):
        summed[state] = summed.get(state, 0) + weight * row
    return summed


def reached(state: History) -> dict[int, float]:
    """That an episode comes to the state in a turn of either author, of the twin: over all who may have written what
    is before it."""
    found = {STUDENT: 0.0, TEACHER: 0.0}
    for authors in product((STUDENT, TEACHER), repeat=len(state)):
        probability, accepted = 1.0, []
        for number, (turn, who) in enumerate(zip(state, authors, strict=True)):
            taken = reference.takeover_probabilities([*accepted, []], ALPHA)[-1]
            probability *= taken if who == TEACHER else 1.0 - taken
            accepted.append([])
            for place, token in enumerate(turn):
                here = (*state[:number], turn[:place])
                probability *= math.exp(log_softmax(logits(here, who))[token])
                accepted[-1].append(1.0 if who == TEACHER else reference.trust_probability(log_ratio(here, token)))
        found[authors[-1]] += probability
    return found


def test_in_expectation_a_turn_that_is_taken_over_is_taught_and_the_others_are_distilled():
    """At each state P(the student's) ∇KL(π_S ‖ π_T) + β P(the teacher's) (π_S − π_T): the second is ∇ of forward KL."""
    found = gradients_of_shared_episodes()
    chances = {state: reached(state) for state in found}
    assert all(both[TEACHER] == 0 for state, both in chances.items() if len(state) == 1), "the first is the student's"
    assert len({round(both[TEACHER] / sum(both.values()), 6) for both in chances.values()}) > 20
    for state, gradient in found.items():
        student, teacher = (np.exp(log_softmax(logits(state, who))) for who in (STUDENT, TEACHER))
        both = chances[state]
        expected = both[STUDENT] * state_gradient(state) + BETA * both[TEACHER] * (student - teacher)
        assert gradient == pytest.approx(expected, abs=1e-7), state
    begun = [both[TEACHER] for state, both in chances.items() if len(state) == MANY and not state[-1]]
    trusts = [sum(chances[state].values()) for state in chances if len(state) == MANY and not state[-1]]
    assert math.fsum(trusts) == pytest.approx(1) and 0.05 < math.fsum(begun) < ALPHA
