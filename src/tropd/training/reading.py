"""From the host's padded tensors to rollout records."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..rollout.notes import SamplerNotes
from ..rollout.quality import is_collapsed, is_repetitive
from .batch import Rollout


def unpad(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """The kept token ids of each row."""
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


def read_rollouts(
    host: dict[str, Any],
    contexts: Sequence[list[int]],
    teachers: Sequence[str | None],
    starts: Sequence[list[int]],
    *,
    first_row: int,
    eos_ids: Sequence[int],
    mask_truncated: bool,
    mask_repetitive: bool,
    notes: SamplerNotes | None = None,
) -> list[Rollout]:
    """One record for each row of what TRL's rollout returns.

    Args:
        host: the output of `_generate_and_score_completions`.
        contexts: what the teacher sees, row by row.
        teachers: the name of each row's teacher.
        starts: the teacher prefixes that the responses begin with.
        first_row: number of the first row in the whole step.
        eos_ids: every id that ends a response.
        mask_truncated: leave rollouts without an ending out of the loss.
        mask_repetitive: leave rollouts that end in a repeating cycle out of the loss.
        notes: what our own sampler knew of the tokens.
    """
    prompt_ids = unpad(host["prompt_ids"], host["prompt_mask"])
    responses = unpad(host["completion_ids"], host["completion_mask"])
    tool_mask, sampler = host.get("tool_mask"), host.get("sampling_per_token_logps")
    rollouts = []
    for i, (response, start) in enumerate(zip(responses, starts, strict=True)):
        written = response[len(start) :]
        ended_by = written[-1] if written and written[-1] in eos_ids else None
        repetitive = is_repetitive(written)
        noted = None
        if notes is not None and sampler is None:
            noted = notes.of(first_row + i, prompt_ids[i], response)
        rollouts.append(
            Rollout(
                row=first_row + i,
                prompt_ids=prompt_ids[i],
                teacher_context=contexts[i],
                response=response,
                prefix_length=len(start),
                external=None if tool_mask is None else (tool_mask[i][: len(response)] == 0).tolist(),
                sampler_logps=noted.logps if noted else _logps_of(sampler, i, len(response)),
                sampler_entropies=noted.entropies if noted else None,
                reward_advantage=float(host["advantages"][i]),
                ended_by=ended_by,
                repetitive=repetitive,
                collapsed=is_collapsed(written, eos_ids, guided=bool(start)),
                included=not (mask_truncated and ended_by is None) and not (mask_repetitive and repetitive),
                teacher=teachers[i],
            )
        )
    return rollouts


def _logps_of(sampler: Tensor | None, row: int, length: int) -> list[float] | None:
    return None if sampler is None else sampler[row][:length].tolist()  # type: ignore[no-any-return]
