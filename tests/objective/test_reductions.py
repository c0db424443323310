"""From token losses to the scalar: denominators, empty regions, and batches cut into pieces."""

import pytest
import torch

import reference
from tropd import objective
from tropd.objective import RegionCounts, TokenLosses, TokenSignals

REDUCTIONS = ("shared", "per_region", "selected")
# Sequences of tokens, each a region and a loss; "·" is a token that is left out.
RAGGED = [
    [("guidance", 0.5), ("guidance", 1.5), ("trust", -2.0), ("outlier", 4.0)],
    [],
    [("trust", 1.0)],
    [("·", 99.0), ("outlier", 3.0), ("trust", 7.0), ("trust", -0.5), ("guidance", 2.5)],
]
ONE_REGION = [[("trust", 1.0), ("trust", 4.0)], [("·", 99.0)]]
NOTHING = [[], [("·", 99.0)]]


def tensors(sequences: list) -> tuple[TokenLosses, TokenSignals]:
    """The ragged sequences, flattened as a batch would be: a loss lives in its own region and is zero elsewhere."""
    tokens = [token for sequence in sequences for token in sequence]
    in_region = {
        name: torch.tensor([float(region == name) for region, _ in tokens]).double()
        for name in ("trust", "outlier", "guidance")
    }
    values = torch.tensor([loss for _, loss in tokens]).double()
    parts = {name: (mask * values).requires_grad_(True) for name, mask in in_region.items()}
    zeros = torch.zeros(len(tokens)).double()
    losses = TokenLosses(**parts, reward=zeros)
    signals = TokenSignals(zeros, zeros, in_region["trust"], in_region["outlier"], in_region["guidance"])
    return losses, signals


def counts_of(signals: TokenSignals) -> RegionCounts:
    return RegionCounts(*objective.region_counts(signals).tolist())


def twin(sequences: list, reduction: str) -> float:
    losses = [[loss for _, loss in sequence] for sequence in sequences]
    regions = [[None if region == "·" else region for region, _ in sequence] for sequence in sequences]
    if reduction == "selected":  # of the on-policy tokens, those trusted; the twin has no prefix there
        chosen = [[region == "trust" for region in sequence] for sequence in regions]
        return reference.selected_mean(losses, chosen)
    return {"shared": reference.shared_mean, "per_region": reference.per_region_mean}[reduction](losses, regions)


def only_trusted(sequences: list) -> list:
    return [[(r, loss if r == "trust" else 0.0) for r, loss in sequence] for sequence in sequences]


@pytest.mark.parametrize(
    "sequences", [RAGGED, ONE_REGION, NOTHING, [[]]], ids=["ragged", "one region", "none", "empty"]
)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_reduction_equals_its_twin_over_ragged_sequences(reduction, sequences):
    if reduction == "selected":
        sequences = only_trusted(sequences)  # a masked method has no loss outside Σ M
    losses, signals = tensors(sequences)
    ours = objective.reduce_losses(losses, counts_of(signals), reduction)
    assert ours.item() == pytest.approx(twin(sequences, reduction), abs=1e-14)


@pytest.mark.parametrize("cut", [[4, 6], [1, 9], [5, 0, 5], [3, 3, 3, 1], [1] * 10])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_micro_batches_add_up_to_the_undivided_batch(reduction, cut):
    losses, signals = tensors(RAGGED)
    counts = counts_of(signals)
    whole = objective.reduce_losses(losses, counts, reduction)
    whole_gradient = torch.autograd.grad(whole, (losses.trust, losses.outlier, losses.guidance))
    parts, start = [], 0
    for size in cut:
        rows = slice(start, start + size)
        piece = TokenLosses(losses.trust[rows], losses.outlier[rows], losses.guidance[rows], losses.reward[rows])
        parts.append(objective.reduce_losses(piece, counts, reduction))
        start += size
    assert start == 10
    summed = torch.stack(parts).sum()
    assert summed.item() == pytest.approx(whole.item(), abs=1e-14)
    gradient = torch.autograd.grad(summed, (losses.trust, losses.outlier, losses.guidance))
    for mine, theirs in zip(gradient, whole_gradient, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-15)


def test_counts_of_ranks_add_up_exactly():
    _, signals = tensors(RAGGED)
    _, first = tensors(RAGGED[:2])
    _, second = tensors(RAGGED[2:])
    both = objective.region_counts(first) + objective.region_counts(second)
    assert objective.region_counts(signals).tolist() == both.tolist() == [4.0, 2.0, 3.0]


def test_counts_are_summed_in_float64():
    weights = torch.tensor([2.0**24, 1.0])  # their sum is not a float32
    signals = TokenSignals(weights, weights, weights, weights, torch.zeros(2))
    assert objective.region_counts(signals).tolist() == [2**24 + 1, 2**24 + 1, 0]


def test_long_prefixes_dilute_the_shared_mean_and_no_region_of_its_own():
    short = [[("trust", 2.0), ("guidance", 0.0)]]
    long = [[("trust", 2.0), *[("guidance", 0.0)] * 9]]
    loss = {
        name: [objective.reduce_losses(tensors(s)[0], counts_of(tensors(s)[1]), name).item() for s in (short, long)]
        for name in ("shared", "per_region")
    }
    assert loss == {"shared": pytest.approx([1.0, 0.2]), "per_region": pytest.approx([2.0, 2.0])}


def test_outlier_tokens_do_not_move_the_trust_region_mean():
    few, many = [[("trust", 2.0), ("outlier", 5.0)]], [[("trust", 2.0), *[("outlier", 5.0)] * 7]]
    for sequences in (few, many):
        losses, signals = tensors(sequences)
        parts = objective.reduced_parts(losses, counts_of(signals), "per_region")
        assert parts["trust"].item() == 2.0 and parts["outlier"].item() == 5.0


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_an_empty_region_is_zero_and_keeps_its_gradient_finite(reduction):
    losses, signals = tensors(ONE_REGION)
    parts = objective.reduced_parts(losses, counts_of(signals), reduction)
    assert parts["outlier"].item() == parts["guidance"].item() == 0.0
    sum(parts.values()).backward()
    assert losses.outlier.grad.isfinite().all() and losses.trust.grad.isfinite().all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_parts_sum_to_the_loss(reduction):
    losses, signals = tensors(RAGGED)
    parts = objective.reduced_parts(losses, counts_of(signals), reduction)
    assert set(parts) == {"trust", "outlier", "guidance", "reward"}
    whole = objective.reduce_losses(losses, counts_of(signals), reduction)
    assert sum(part.item() for part in parts.values()) == pytest.approx(whole.item(), abs=1e-15)


def test_an_unknown_reduction_is_refused():
    losses, signals = tensors(RAGGED)
    with pytest.raises(ValueError, match="reduction is 'sum'"):
        objective.reduce_losses(losses, counts_of(signals), "sum")
