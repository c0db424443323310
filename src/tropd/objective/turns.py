"""Weights of the turns of an episode: how much each token of a turn counts beside those of the others.

N counts the scored tokens of a batch, turn after turn and episode after episode; `turn_lengths` says how many of them
each turn of each episode has. Nothing here has a gradient.
"""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor


def turn_mean_weights(counted: Tensor, turn_lengths: Sequence[Sequence[int]]) -> Tensor:
    """Weights [N] under which a mean over tokens is, in each episode, the mean over its turns of their means.

    w = n / (K n_j) for a token of turn j, with n_j of the episode's n tokens that count, in K turns that have any.
    Their sum is n, so that an episode weighs what it does in a mean over tokens; of a single turn each is exactly 1.

    >>> turn_mean_weights(torch.tensor([True, True, True, True, True]), [[3, 1], [1]]).tolist()
    [0.6666666865348816, 0.6666666865348816, 0.6666666865348816, 2.0, 1.0]

    Args:
        counted: bool [N], the tokens that a mean is over; what the others get is never read.
        turn_lengths: of each episode, scored tokens of each turn.

    Raises:
        ValueError: the lengths do not add up to N.
    """
    _check_lengths(counted, turn_lengths)
    weights, start, counts = [], 0, counted.cpu()
    for episode in turn_lengths:
        sizes = [int(turn.sum()) for turn in torch.split(counts[start : start + sum(episode)], list(episode))]
        num_turns = sum(size > 0 for size in sizes)
        each = [sum(sizes) / (num_turns * size) if size else 1.0 for size in sizes]
        weights += [value for value, length in zip(each, episode, strict=True) for _ in range(length)]
        start += sum(episode)
    return torch.tensor(weights, dtype=torch.float32, device=counted.device)


def turn_trust_weights(accepted: Tensor, counted: Tensor, turn_lengths: Sequence[Sequence[int]]) -> Tensor:
    """Trust [N] in the turn of each token: the mean acceptance of the tokens before that turn in its episode.

    A_j = mean of `accepted` over the tokens that count in turns 1 … j − 1, and 1 where there are none. It is known
    before turn j is written, so that as a weight it scales a state's expected gradient and does not turn it.

    >>> accepted, counted = torch.tensor([1.0, 0.5, 0.2, 0.3]), torch.tensor([True, True, True, False])
    >>> turn_trust_weights(accepted, counted, [[2, 1, 1]]).tolist()
    [1.0, 1.0, 0.75, 0.5666666626930237]

    Args:
        accepted: [N], the probability with which the teacher accepts each token; see `regions.trust_probability`.
        counted: bool [N], the tokens that a mean is over.
        turn_lengths: of each episode, scored tokens of each turn.

    Raises:
        ValueError: the lengths do not add up to N.
    """
    _check_lengths(counted, turn_lengths)
    # Added up in float64, on the host: the same whatever device and batch the episode is in.
    values, counts = accepted.detach().double().cpu(), counted.cpu()
    weights, start = torch.ones(len(counts), dtype=torch.float64), 0
    for episode in turn_lengths:
        total, number = 0.0, 0
        for length in episode:
            turn = slice(start, start + length)
            if number:
                weights[turn] = total / number
            total += float(values[turn][counts[turn]].sum())
            number += int(counts[turn].sum())
            start += length
    return weights.to(torch.float32).to(counted.device)


def takeover_probability(accepted: Tensor, counted: Tensor, fraction: float) -> float:
    """Probability with which the teacher writes the next turn of an episode: α (1 − A), with A its trust so far.

    A is the mean acceptance of all that was written before, as in `turn_trust_weights`: of a student that writes as
    its teacher does no turn is ever taken over.

    >>> takeover_probability(torch.tensor([1.0, 0.5, 0.0]), torch.tensor([True, True, False]), fraction=0.8)
    0.2

    Args:
        accepted: [n], the probability with which the teacher accepts each token so far.
        counted: bool [n], the tokens that the mean is over; without any A is 1.
        fraction: α of the schedule.
    """
    values = accepted.detach().double()[counted]
    return fraction * (1.0 - float(values.mean())) if len(values) else 0.0


def _check_lengths(counted: Tensor, turn_lengths: Sequence[Sequence[int]]) -> None:
    total = sum(chain.from_iterable(turn_lengths))
    if total != counted.numel():
        raise ValueError(f"turn_lengths add up to {total} tokens, but there are {counted.numel()}.")
