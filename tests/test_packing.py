"""Rows of about one length are read together: no more padding than pays, and the same states for every token."""

import itertools
import random

import pytest
import torch

from training import tiny
from tropd.models.hidden_states import expose_hidden_states
from tropd.models.packing import PASS_COST, length_groups, pack_responses
from tropd.teacher.local import LocalTeacher

PAD = tiny.PAD


def cost(groups, lengths, pass_cost):
    return sum(len(group) * max(lengths[row] for row in group) + pass_cost for group in groups)


def every_split(rows):
    """All partitions of a few rows."""
    if not rows:
        yield []
        return
    first, rest = rows[0], rows[1:]
    for size in range(len(rest) + 1):
        for others in itertools.combinations(rest, size):
            left = [row for row in rest if row not in others]
            for split in every_split(left):
                yield [[first, *others], *split]


@pytest.mark.parametrize("seed", range(30))
def test_no_other_split_computes_less(seed):
    draw = random.Random(seed)
    lengths = [draw.choice((1, 5, 20, 21, 60, 100)) for _ in range(draw.randint(1, 6))]
    pass_cost = draw.choice((0, 3, 30, 300))
    groups = length_groups(lengths, pass_cost)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    least = min(cost(split, lengths, pass_cost) for split in every_split(list(range(len(lengths)))))
    assert cost(groups, lengths, pass_cost) == least


def rows_of(lengths, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(4, 60, (length,), generator=draw).tolist() for length in lengths]


MIXED = [90, 3, 88, 5, 2, 91, 4, 3]


def test_every_token_has_the_state_that_one_padded_batch_gives_it(monkeypatch):
    monkeypatch.setitem(PASS_COST, "cpu", 8)
    model = tiny.llama(seed=0)
    expose_hidden_states(model)
    contexts, responses = rows_of([1, 4, 2, 3, 1, 2, 5, 2]), rows_of(MIXED, seed=1)
    marks = [[place % 3 != 1 for place in range(len(row))] for row in responses]
    both = [pack_responses(contexts, responses, marks, PAD, by_length=by_length) for by_length in (False, True)]
    assert [len(packed.input_ids) for packed in both] == [1, 2]
    one, several = (
        model(
            input_ids=packed.input_ids,
            attention_mask=packed.attention_mask,
            on_hidden=lambda hidden, head, packed=packed: packed.states(hidden),
        )
        for packed in both
    )
    assert torch.equal(both[0].token_ids, both[1].token_ids)
    torch.testing.assert_close(one, several, atol=1e-5, rtol=0)
    computed = [sum(ids.numel() for ids in packed.input_ids) for packed in both]
    assert computed[1] < 0.5 * computed[0]


def test_rows_of_one_length_are_one_group():
    assert (
        len(pack_responses(rows_of([3] * 8), rows_of([50] * 8), [[True] * 50] * 8, PAD, by_length=True).input_ids) == 1
    )


def test_no_rows_are_no_tokens():
    for by_length in (False, True):
        packed = pack_responses([], [], [], PAD, by_length=by_length)
        assert packed.token_ids.numel() == 0 and [ids.shape for ids in packed.input_ids] == [(0, 0)]


@pytest.mark.parametrize("method", ["opd", "tropd", "gkd"])
def test_a_step_with_several_groups_is_the_step_of_one(tmp_path, monkeypatch, method):
    """Scores of both models, gradients and metrics, from rollouts of very different lengths."""
    written = [
        row[: length if row[-1] != tiny.EOS else None] for row, length in zip(rows_of(MIXED, 2), MIXED, strict=True)
    ]
    options = {"script": lambda contexts: written, "max_completion_length": 100, "rescore_rollouts": True}
    options |= {"guidance_schedule": "none"} if method == "tropd" else {}
    done = []
    for pass_cost in (10**6, 8):
        monkeypatch.setitem(PASS_COST, "cpu", pass_cost)
        done.append(tiny.run(tmp_path / str(pass_cost), tiny.llama(seed=1), tiny.llama(seed=2), method, **options))
    one, several = done
    scale = tiny.largest(one.gradients)
    assert scale > 0.01
    assert tiny.largest_difference(one.gradients, several.gradients) < 1e-5 * max(scale, 1)
    for name in ("loss", "kl/k1", "entropy/teacher", "entropy/student"):
        assert several.logs[0][name] == pytest.approx(one.logs[0][name], abs=1e-4)


def test_a_response_that_holds_the_padding_id_is_scored_as_any_and_padding_never_is():
    """Padding is known by its place: the id of padding that a model wrote is a token like the others."""
    contexts, responses = [[5, PAD, 7], [8]], [[PAD, 9, PAD, PAD, tiny.EOS], [PAD]]
    model = tiny.llama(seed=0)
    scores = LocalTeacher(model).score(contexts, responses, [[True] * len(row) for row in responses], pad_id=PAD)
    expected = []
    for context, response in zip(contexts, responses, strict=True):
        logits = model(input_ids=torch.tensor([context + response])).logits[0, len(context) - 1 : -1]
        expected.append(logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None])[:, 0])
    assert len(scores.logp) == 6
    torch.testing.assert_close(scores.logp, torch.cat(expected), atol=1e-5, rtol=0)
