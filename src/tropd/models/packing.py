"""Sequences as model inputs with little padding: rows of about one length are read together.

N counts the response tokens that are to be scored, row after row; a group has B rows of at most L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PASS_COST = {"cpu": 128, "elsewhere": 2048}
"""What one more pass over the layers costs, in tokens: launches, and products too small to fill the device."""


@dataclass(frozen=True)
class PackedResponses:
    """Right-padded model inputs of several sequences, and where their response tokens are.

    `state_index` is the one place where the shift by one lives: entry n of every per-token tensor describes token n,
    predicted by the state before it.

    Attributes:
        input_ids: [B, L] of each group, context then response.
        attention_mask: [B, L] of each group.
        state_index: [N], into the hidden states of all groups, flattened one after another.
        token_ids: [N].
    """

    input_ids: tuple[Tensor, ...]
    attention_mask: tuple[Tensor, ...]
    state_index: Tensor
    token_ids: Tensor

    def states(self, hidden: Tensor) -> Tensor:
        """The states [N, H] that predict the scored tokens, of the groups' [..., H]."""
        return hidden.flatten(0, -2)[self.state_index]


def pack_responses(
    contexts: Sequence[list[int]],
    responses: Sequence[list[int]],
    scored: Sequence[list[bool]],
    pad_id: int,
    device: torch.device | str = "cpu",
    *,
    by_length: bool = False,
) -> PackedResponses:
    """Pack `contexts[b] + responses[b]` on the right and index the response tokens marked in `scored`.

    Args:
        contexts: token ids; none may be empty.
        responses: token ids.
        scored: for each response token, whether it is one of the N.
        pad_id: any valid id.
        device: where the tensors go.
        by_length: make several groups where they save more padding than their passes cost; otherwise there is one.
    """
    sequences = [context + response for context, response in zip(contexts, responses, strict=True)]
    groups = [list(range(len(sequences)))]
    if by_length and sequences:
        cost = PASS_COST.get(torch.device(device).type, PASS_COST["elsewhere"])
        groups = length_groups([len(sequence) for sequence in sequences], cost)
    padded: list[tuple[Tensor, Tensor]] = []
    first_state, done = {}, 0  # where each row begins among the flattened tokens of all groups
    for group in groups:
        length = max((len(sequences[row]) for row in group), default=0)
        input_ids = torch.full((len(group), length), pad_id, dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        for place, row in enumerate(group):
            size = len(sequences[row])
            input_ids[place, :size] = torch.tensor(sequences[row])
            attention_mask[place, :size] = 1
            first_state[row] = done + place * length
        done += input_ids.numel()
        padded.append((input_ids.to(device), attention_mask.to(device)))
    state_index: list[int] = []
    token_ids: list[int] = []
    for row, (context, response, marks) in enumerate(zip(contexts, responses, scored, strict=True)):
        if not context:
            raise ValueError(f"row {row} has an empty prompt, so nothing predicts its first response token")
        before_response = first_state[row] + len(context) - 1
        for position, (token, marked) in enumerate(zip(response, marks, strict=True)):
            if marked:
                state_index.append(before_response + position)
                token_ids.append(token)
    return PackedResponses(
        tuple(ids for ids, _ in padded),
        tuple(mask for _, mask in padded),
        torch.tensor(state_index, dtype=torch.long, device=device),
        torch.tensor(token_ids, dtype=torch.long, device=device),
    )


def length_groups(lengths: Sequence[int], pass_cost: int) -> list[list[int]]:
    """The split of rows into groups that computes least: Σ over groups of rows · longest + `pass_cost`.

    >>> length_groups([10, 100, 11, 99], pass_cost=50)
    [[1, 3], [0, 2]]
    >>> length_groups([10, 100, 11, 99], pass_cost=500)
    [[0, 1, 2, 3]]
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    longest_first = np.array([lengths[row] for row in order], dtype=np.int64)
    least = np.zeros(len(order) + 1, dtype=np.int64)  # of the first i rows, and where their last group begins
    begins = np.zeros(len(order) + 1, dtype=np.int64)
    for i in range(1, len(order) + 1):
        costs = least[:i] + longest_first[:i] * (i - np.arange(i)) + pass_cost
        begins[i] = costs.argmin()
        least[i] = costs[begins[i]]
    groups, stop = [], len(order)
    while stop:
        groups.append(sorted(order[begins[stop] : stop]))
        stop = int(begins[stop])
    return groups[::-1]
