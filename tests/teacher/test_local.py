"""The teacher in this process: what it scores, once, in which context, and what it writes.

Scores of padded batches and of single rows differ by the rounding of float32 sums: 1e-5 in log-probabilities.
"""

import math

import pytest
import torch

from training import tiny
from training.tiny import EOS, PAD, clone, plain_logps
from tropd.models.fingerprint import of_weights
from tropd.models.hidden_states import expose_hidden_states
from tropd.models.packing import PackedResponses
from tropd.teacher import local
from tropd.teacher.local import LocalTeacher, TopKRequest, until_eos

CONTEXTS = [[5, 6, 7], [8], [9, 10, 11, 12]]
RESPONSES = [[20, 21, EOS], [22, 23, 24, 25, 26], [27]]
ALL = [[True] * len(response) for response in RESPONSES]


@pytest.fixture(scope="module")
def model():
    return tiny.qwen(seed=3)


@pytest.fixture
def teacher(model):
    return LocalTeacher(clone(model))


def flat_logps(model, contexts=CONTEXTS, responses=RESPONSES):
    with torch.no_grad():
        return torch.cat([plain_logps(model, c, r) for c, r in zip(contexts, responses, strict=True)])


def flat_ids(responses=RESPONSES):
    return torch.tensor([token for response in responses for token in response])


@pytest.mark.parametrize("rows_per_pass", [None, 1, 2])
def test_scores_are_the_models_own_whatever_is_scored_beside_them(model, teacher, rows_per_pass):
    scores = teacher.score(CONTEXTS, RESPONSES, ALL, pad_id=PAD, rows_per_pass=rows_per_pass)
    logps = flat_logps(model)
    expected = logps.gather(-1, flat_ids()[:, None])[:, 0]
    torch.testing.assert_close(scores.logp.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.entropy.double(), -(logps.exp() * logps).sum(-1), atol=1e-5, rtol=0)


def test_what_pads_a_row_does_not_matter(teacher):
    first, second = (teacher.score(CONTEXTS, RESPONSES, ALL, pad_id=pad).logp for pad in (PAD, 33))
    assert torch.equal(first, second)


def test_the_temperature_divides_the_logits(model, teacher):
    scores = teacher.score(CONTEXTS, RESPONSES, ALL, pad_id=PAD, temperature=0.5)
    expected = (flat_logps(model) / 0.5).log_softmax(-1).gather(-1, flat_ids()[:, None])[:, 0]
    torch.testing.assert_close(scores.logp.double(), expected, atol=1e-5, rtol=0)


def test_only_the_marked_tokens_are_scored(teacher):
    marks = [[True, False, True], [False] * 5, [True]]
    some = teacher.score(CONTEXTS, RESPONSES, marks, pad_id=PAD)
    every = teacher.score(CONTEXTS, RESPONSES, ALL, pad_id=PAD)
    torch.testing.assert_close(some.logp, every.logp[[0, 2, 8]], atol=1e-5, rtol=0)


def test_nothing_to_score_is_empty_and_not_an_error(teacher):
    request = TopKRequest(4, 64, lambda logp, entropy, tokens: torch.ones_like(logp, dtype=torch.bool))
    scores = teacher.score(CONTEXTS, RESPONSES, [[False] * len(r) for r in RESPONSES], pad_id=PAD, topk=request)
    assert scores.logp.shape == scores.entropy.shape == scores.topk_index.shape == (0,)
    assert scores.topk_logp.shape == (0, 4)


@pytest.mark.parametrize("rows_per_pass", [None, 1])
def test_the_topk_is_kept_where_it_is_wanted_and_nowhere_else(model, teacher, rows_per_pass):
    wanted = torch.tensor([1, 0, 0, 1, 1, 0, 0, 0, 1], dtype=torch.bool)
    seen = []

    def wants(logp, entropy, tokens):
        seen.extend(range(tokens.start, tokens.stop))
        return wanted[tokens]

    request = TopKRequest(k=3, vocab_limit=64, wanted=wants)
    scores = teacher.score(CONTEXTS, RESPONSES, ALL, pad_id=PAD, rows_per_pass=rows_per_pass, topk=request)
    assert seen == list(range(9))
    assert scores.topk_index.tolist() == [0, 3, 4, 8]
    expected = flat_logps(model)[wanted].topk(3)
    assert torch.equal(scores.topk_ids.long(), expected.indices)
    torch.testing.assert_close(scores.topk_logp.double(), expected.values, atol=1e-5, rtol=0)


def test_the_topk_is_chosen_among_the_shared_ids_with_the_whole_softmax(model, teacher):
    request = TopKRequest(k=2, vocab_limit=5, wanted=lambda logp, *_: torch.ones_like(logp, dtype=torch.bool))
    scores = teacher.score(CONTEXTS, RESPONSES, ALL, pad_id=PAD, topk=request)
    expected = flat_logps(model)[:, :5].topk(2)
    assert torch.equal(scores.topk_ids.long(), expected.indices)
    torch.testing.assert_close(scores.topk_logp.double(), expected.values, atol=1e-5, rtol=0)


def test_without_a_request_no_topk_and_no_hidden_states_are_kept(teacher):
    scores = teacher.score(CONTEXTS, RESPONSES, ALL, pad_id=PAD)
    assert scores.topk_ids.numel() == scores.topk_logp.numel() == 0
    assert scores.states == ()


def test_from_an_id_beyond_the_teachers_vocabulary_on_a_row_has_no_score(teacher):
    """A student padded further than its teacher may sample an id that the teacher has no row for."""
    scores = teacher.score([[5], [6]], [[20, 70, 21], [22, 23]], [[True] * 3, [True] * 2], pad_id=PAD)
    assert scores.logp.isfinite().tolist() == [True, False, False, True, True]
    alone = teacher.score([[6]], [[22, 23]], [[True] * 2], pad_id=PAD)
    torch.testing.assert_close(scores.logp[3:], alone.logp, atol=1e-5, rtol=0)


def test_a_frozen_teacher_is_in_evaluation_mode_without_gradients(teacher):
    teacher.model.train()
    teacher = LocalTeacher(teacher.model)
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())


def test_what_it_writes_ends_before_the_eos_and_within_the_length(teacher):
    torch.manual_seed(0)
    ends = [EOS, *range(30, 40)]
    written = teacher.write(CONTEXTS * 20, pad_id=PAD, eos_ids=ends, max_new_tokens=9, temperature=1.0)
    assert len(written) == 60
    assert any(0 < len(response) < 9 for response in written)
    assert all(len(response) <= 9 and not set(ends) & set(response) for response in written)


def test_it_samples_from_its_own_softmax_at_the_temperature(model, teacher):
    """4000 first tokens: a multinomial's own total variation is about √(V/(2πn)) ≈ 0.05."""
    torch.manual_seed(0)
    written = teacher.write([[5, 6]] * 4000, pad_id=PAD, eos_ids=[], max_new_tokens=1, temperature=2.0)
    counts = torch.bincount(torch.tensor([row[0] for row in written]), minlength=64) / 4000
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 6]])).logits[0, -1]
    assert 0.5 * (counts - (logits / 2).softmax(-1)).abs().sum() < 0.08


def test_it_writes_only_ids_that_the_student_can_read(teacher):
    torch.manual_seed(0)
    written = teacher.write([[5, 6]] * 64, pad_id=PAD, eos_ids=[EOS], max_new_tokens=8, temperature=1.0, vocab_limit=20)
    assert max(token for row in written for token in row) < 20


def test_exposing_hidden_states_twice_changes_nothing(model):
    twice = clone(model)
    expose_hidden_states(twice)
    forward = twice.forward
    expose_hidden_states(twice)
    assert twice.forward == forward


def test_until_eos_takes_what_comes_before_the_first_end():
    assert until_eos([1, 2, 3, 2], [2]) == [1]
    assert until_eos([1, 3], [2]) == [1, 3]
    assert until_eos([2], [2]) == []


def test_a_score_that_is_not_a_number_stays_with_its_token(model, monkeypatch):
    """A teacher whose head gives NaN for one state says so there; the entropy and the other tokens are untouched."""
    broken = clone(model)
    teacher = LocalTeacher(broken)
    pack = local.pack_responses
    monkeypatch.setattr(local, "pack_responses", lambda *rows, **how: Poisoned(**vars(pack(*rows, **how))))

    class Poisoned(PackedResponses):
        def states(self, hidden_BLH):
            states = super().states(hidden_BLH).clone()
            states[4] = math.nan
            return states

    scores = teacher.score(CONTEXTS, RESPONSES, ALL, pad_id=PAD)
    assert scores.logp.isfinite().tolist() == [n != 4 for n in range(9)]


def test_a_weight_of_more_entries_than_float32_counts_has_a_fingerprint():
    model = torch.nn.Module()
    model.register_buffer("embedding", torch.zeros(49_152, 576, dtype=torch.uint8))
    before = of_weights(model)
    model.embedding[-1, -1] = 1
    assert of_weights(model) != before
