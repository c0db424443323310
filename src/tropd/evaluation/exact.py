"""Exact divergences between two models on given states, over the whole vocabulary at every position.

Affordable with a small vocabulary, where the distance of a pair can be computed instead of estimated.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..models.hidden_states import expose_hidden_states
from ..models.packing import PackedResponses, pack_responses
from ..models.sampling import sample
from ..objective.divergences import forward_kl, reverse_kl
from ..objective.endings import Endings
from ..objective.head.layer import Head, entropy_of


@dataclass(frozen=True)
class ExactDivergence:
    """Means over states (response positions), in nats but for `total_variation`.

    Attributes:
        reverse_kl: KL(student‖teacher).
        forward_kl: KL(teacher‖student).
        total_variation: ½ Σ |π_S − π_T|.
        student_entropy: of the student.
        num_states: positions averaged over.
    """

    reverse_kl: float
    forward_kl: float
    total_variation: float
    student_entropy: float
    num_states: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def exact_divergence(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    **options: Any,
) -> ExactDivergence:
    """The means of `state_divergences`, which takes the same."""
    found = state_divergences(student, teacher, prompts, responses, **options)
    if len(found) == 0:
        raise ValueError("there are no response tokens on which to measure a divergence")
    reverse, forward, variation, entropy = found.mean(0).tolist()
    return ExactDivergence(reverse, forward, variation, entropy, len(found))


@torch.no_grad()
def state_divergences(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    *,
    rows_per_pass: int = 16,
    pad_id: int = 0,
    endings: Endings = (),
    external: Sequence[list[bool]] | None = None,
) -> Tensor:
    """Divergences at the states that predict each response token, row after row.

    Args:
        student: scored first; reverse KL is KL(student‖teacher).
        teacher: must share the student's vocabulary, entry for entry.
        prompts: token ids.
        responses: token ids; whose states these are is the caller's choice.
        rows_per_pass: sequences per forward.
        pad_id: any valid id.
        endings: ids that end a response, taken as one action; see `objective.endings`.
        external: for each response token, did a tool say it? Such ones are no states of a model's.

    Returns:
        [states, 4] in float64: the first four numbers of an `ExactDivergence`.
    """
    found = [torch.zeros(0, 4, dtype=torch.float64)]
    for start in range(0, len(prompts), rows_per_pass):
        rows = slice(start, start + rows_per_pass)
        marks = (
            [[True] * len(response) for response in responses[rows]]
            if external is None
            else [[not told for told in row] for row in external[rows]]
        )
        packed = pack_responses(list(prompts[rows]), list(responses[rows]), marks, pad_id, student.device)
        student_logps, teacher_logps = (state_logps(m, packed, endings) for m in (student, teacher))
        found.append(_by_state(student_logps.double(), teacher_logps.double()).cpu())
    return torch.cat(found)


def _by_state(student_logps: Tensor, teacher_logps: Tensor) -> Tensor:
    total_variation = 0.5 * (student_logps.exp() - teacher_logps.exp()).abs().sum(-1)
    columns = (
        reverse_kl(student_logps, teacher_logps),
        forward_kl(student_logps, teacher_logps),
        total_variation,
        entropy_of(student_logps),
    )
    return torch.stack(columns, dim=-1)


def state_logps(model: PreTrainedModel, packed: PackedResponses, endings: Endings = ()) -> Tensor:
    """[N, V] log-probabilities over the whole vocabulary at the states that predict each marked response token."""
    expose_hidden_states(model)

    def read(hidden: Tensor, head: Head) -> Tensor:
        return head.at_temperature(1.0, endings).logits(packed.states(hidden)).log_softmax(-1)

    return model(input_ids=packed.input_ids, attention_mask=packed.attention_mask, on_hidden=read)


def sample_responses(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    pad_id: int,
    seed: int,
    rows_per_pass: int = 64,
) -> list[list[int]]:
    """One response for each prompt at temperature 1, the end-of-sequence token included; the global generator is
    seeded inside and restored."""
    responses: list[list[int]] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(prompts), rows_per_pass):
            rows = prompts[start : start + rows_per_pass]
            responses += sample(model, rows, max_new_tokens=max_new_tokens, eos_ids=eos_ids, pad_id=pad_id)
    return responses
