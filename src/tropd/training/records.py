"""The records that pass from rollout to scoring to loss, and how a rollout is read from the host's tensors.

N counts the response tokens of a micro-batch that are learned from or measured, row after row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import torch

from ..messages import is_unanswered
from ..models.packing import PackedResponses, pack_responses
from ..objective.loss import DirectTerm, TokenSignals
from ..objective.methods import Method
from ..objective.reduce import RegionCounts
from ..rollout.engine.loop import SamplerNotes, unpad
from ..rollout.turns import Turns
from ..teacher.local import NotedTopK

REPEAT_PERIOD = 16
"""Longest cycle, in tokens, that counts as repetition."""
REPEAT_TIMES = 8
"""How often a cycle must return at the end of a rollout to count as repetition."""
REPEAT_CALL_PERIOD, REPEAT_CALL_TIMES = 3, 4
"""The same of whole turns: how many different ones, and how often. A wrong call is often made a second time."""


class Prefix(NamedTuple):
    """What a rollout begins with: the first tokens of its teacher's response."""

    ids: list[int]  # empty where the student writes from the start
    is_endless: bool = False  # the response itself does not end within the budget


@dataclass(frozen=True)
class Rollout:
    """One sequence: prompt, teacher prefix, and what the student wrote after it.

    Made when a batch is built, read by scoring and logging. By hand: a prompt of three tokens, guided by two teacher
    tokens, continued by the student with `9` and the end-of-sequence token `2`:

        Rollout(row=0, prompt_ids=[5, 6, 7], teacher_context=[5, 6, 7], response=[4, 8, 9, 2], prefix_length=2,
                ended_by=2)
    """

    row: int  # number of the sequence in the whole step, over all ranks; addresses its randomness
    prompt_ids: list[int]  # what the student saw
    teacher_context: list[int]  # what the teacher sees before the response
    response: list[int]  # prefix ⊕ continuation, the end-of-sequence token included where there is one
    prefix_length: int = 0  # how many tokens at the start of the response are the teacher's
    # for each response token, was it put there by a tool or an environment? `None`: none was
    external: list[bool] | None = None
    # the sampler's own log-probabilities, NaN where it has none; `None` with samplers that return ids only
    sampler_logps: list[float] | None = None
    # entropies of the softmax it drew from, at the sampling temperature; likewise
    sampler_entropies: list[float] | None = None
    reward_advantage: float = 0.0  # group-normalised advantage of the rewards, 0 without rewards
    # the end-of-sequence token that the student ended it with; `None` where it was cut, or where nobody answered the
    # calls in its last turn
    ended_by: int | None = None
    repetitive: bool = False  # does it end in a repeating cycle, of tokens or of whole turns?
    collapsed: bool = False  # is it empty, or nothing but repetition at its end?
    included: bool = True  # is it part of the loss?
    teacher: str | None = None  # the name of the teacher that scores it; `None` where there is one, without a name
    # for each response token, did the teacher write it? `None`: those of the prefix, and no others
    guided: list[bool] | None = None
    # did a tool answer otherwise than in the teacher's recorded episode, so that it could not be followed? `None`
    # without such an episode
    stale: bool | None = None
    is_cut: bool | None = None  # does it end in a call that no tool has answered, or in a reply? `None` without tools
    is_prefix_endless: bool = False  # does the whole teacher response of its prefix exceed the budget, too?
    engine: float = 0.0  # what wrote it, as the metric rollout/engine has it

    @cached_property
    def by_teacher(self) -> list[bool]:
        """For each response token: did the teacher write it?"""
        return self.guided or [position < self.prefix_length for position in range(len(self.response))]

    @property
    def ended(self) -> bool:
        """Did the student end it?"""
        return self.ended_by is not None

    @cached_property
    def scored(self) -> list[bool]:
        """For each response token: is it one of the N tokens?"""
        if self.external is None:
            return [self.included] * len(self.response)
        return [self.included and not external for external in self.external]

    @cached_property
    def student_length(self) -> int:
        """Number of tokens the student wrote."""
        return len(self.response) - sum(self.by_teacher) - sum(self.external or [])

    @cached_property
    def turns(self) -> list[range]:
        """The positions of each turn; between two a tool or an environment has spoken."""
        runs = groupby(range(len(self.response)), key=lambda position: bool(self.external and self.external[position]))
        found = [list(positions) for told, positions in runs if not told]
        return [range(positions[0], positions[-1] + 1) for positions in found]

    def wrote_any_of(self, token_ids: Sequence[int]) -> bool:
        """Did the student write one of these tokens?"""
        external = self.external or [False] * len(self.response)
        marked = zip(self.response, self.by_teacher, external, strict=True)
        return any(token in token_ids for token, guided, told in marked if not guided and not told)

    def scored_positions(self) -> list[int]:
        return [position for position, marked in enumerate(self.scored) if marked]


@dataclass(frozen=True)
class MicroBatch:
    """What one forward-backward needs; everything but the student's terms is already known."""

    rollouts: list[Rollout]  # the sequences
    method: Method  # the stage in force when the batch was built
    signals: TokenSignals  # [N] each
    direct: DirectTerm | None  # the divergence to differentiate directly, or `None`
    counts: RegionCounts  # token counts of the whole optimiser step, over micro-batches and ranks
    # no forward pass scored these rollouts when the batch was built; the sampler's log-probs were used
    from_notes: bool = False
    first_update: bool = True  # is this the update by which the student first moves away from the one that sampled?
    # the teacher's likeliest tokens for the rollout log, where these rollouts are logged with them
    noted: NotedTopK | None = None


def pack_for_student(
    rollouts: Sequence[Rollout], pad_id: int, device: torch.device, *, by_length: bool = False
) -> PackedResponses:
    """Model inputs in the student's context; several groups `by_length`, where they pay."""
    return pack_responses(
        [rollout.prompt_ids for rollout in rollouts],
        [rollout.response for rollout in rollouts],
        [rollout.scored for rollout in rollouts],
        pad_id,
        device,
        by_length=by_length,
    )


# ---------------------------------------------------------------------- from the host's tensors to records


def read_rollouts(
    host: dict[str, Any],
    prompt_ids: Sequence[list[int]],
    contexts: Sequence[list[int]],
    teachers: Sequence[str | None],
    prefixes: Sequence[Prefix],
    *,
    first_row: int,
    engine: float,
    eos_ids: Sequence[int],
    mask_truncated: bool,
    mask_repetitive: bool,
    notes: SamplerNotes,
    turns: Turns | None = None,
    stale: Sequence[bool | None] | None = None,
) -> list[Rollout]:
    """One record for each row of `host`, what TRL's `_generate_and_score_completions` returns.

    Lists have an entry for each row: what the student saw and what its teacher sees, the teacher's name, what the
    response begins with. `eos_ids` end a response, `notes` has what our own sampler knew of the tokens, `turns` each
    row's messages behind its prompt and where its teacher wrote. Rollouts without an ending (`mask_truncated`), or that
    end in a repeating cycle (`mask_repetitive`), are left out of the loss. `stale` says whether a row's recorded
    episode could not be followed; it is `None` where turns are not guided one by one: the teacher wrote the start
    alone.
    """
    responses, tool_mask = unpad(host["completion_ids"], host["completion_mask"]), host.get("tool_mask")
    guided = turns.guided if turns and stale is not None else []
    rollouts = []
    for i, (response, (start, is_endless)) in enumerate(zip(responses, prefixes, strict=True)):
        external = None if tool_mask is None else (tool_mask[i][: len(response)] == 0).tolist()
        marks, own_turns = [position < len(start) for position in range(len(response))], [response[len(start) :]]
        if guided or external is not None:
            marks, own_turns = _find_turns(response, guided[i] if guided else [slice(0, len(start))], external)
        is_cut = None if turns is None or turns.messages is None else is_unanswered(turns.messages[i])
        goes_on = not response or response[-1] not in eos_ids or is_cut or marks[-1]
        logps, entropies = _find_sampler_numbers(host, i, notes, first_row + i, prompt_ids[i], response)
        written = [token for turn in own_turns for token in turn]
        again = len(own_turns) > 1 and repeats_calls(own_turns if own_turns[-1][-1] in eos_ids else own_turns[:-1])
        repetitive = is_repetitive(written) or again
        rollouts.append(
            Rollout(
                row=first_row + i,
                prompt_ids=prompt_ids[i],
                teacher_context=contexts[i],
                response=response,
                prefix_length=next((n for n, mark in enumerate(marks) if not mark), len(marks)),
                guided=marks if guided else None,
                stale=stale[i] if stale else None,
                is_cut=is_cut,
                external=external,
                sampler_logps=logps,
                sampler_entropies=entropies,
                reward_advantage=float(host["advantages"][i]),
                ended_by=None if goes_on else response[-1],
                repetitive=repetitive,
                collapsed=is_collapsed(written, eos_ids, guided=any(marks)) or again,
                included=not (mask_truncated and goes_on) and not (mask_repetitive and repetitive),
                teacher=teachers[i],
                is_prefix_endless=is_endless,
                engine=engine,
            )
        )
    return rollouts


def _find_sampler_numbers(
    host: dict[str, Any], place: int, notes: SamplerNotes, row: int, prompt: list[int], response: list[int]
) -> tuple[list[float] | None, list[float] | None]:
    """The sampler's numbers for a response: log-probabilities, and entropies where our own loop recorded them."""
    told = host.get("sampling_per_token_logps")
    if told is None:
        return notes.of(row, prompt, response) or (None, None)
    # For an ending vLLM gives the id's own probability and not that of the action, so it is not used.
    unsaid = notes.endings if len(notes.endings) > 1 else ()
    pairs = zip(response, told[place][: len(response)].tolist(), strict=True)
    return [math.nan if token in unsaid else logp for token, logp in pairs], None


def _find_turns(
    response: Sequence[int], guided: Sequence[slice], external: Sequence[bool] | None
) -> tuple[list[bool], list[list[int]]]:
    """For each token, did the teacher write it; and what the student wrote, turn by turn.

    >>> _find_turns([5, 6, 2, 9, 7, 2], [slice(0, 1)], [False, False, False, True, False, False])
    ([True, False, False, False, False, False], [[6, 2], [7, 2]])
    """
    marks = [False] * len(response)
    for stretch in guided:
        place = slice(stretch.start, min(stretch.stop, len(response)))
        marks[place] = [True] * max(place.stop - place.start, 0)
    others = marks if external is None else [one or other for one, other in zip(marks, external, strict=True)]
    runs = groupby(zip(response, others, strict=True), key=lambda pair: pair[1])
    return marks, [[token for token, _ in run] for other, run in runs if not other]


# ---------------------------------------------------------------------- gone wrong: endless, empty, repeating itself


def is_repetitive(token_ids: Sequence[Any], max_period: int = REPEAT_PERIOD, times: int = REPEAT_TIMES) -> bool:
    """Does the rollout end in a cycle of at most `max_period` tokens that repeats at least `times` times?

    >>> is_repetitive([5, 1, 2] + [7] * 8), is_repetitive([1, 2] * 8), is_repetitive(list(range(40)))
    (True, True, False)
    """
    for period in range(1, min(max_period, len(token_ids) // times) + 1):
        tail = token_ids[-period * times :]
        if all(tail[i] == tail[i - period] for i in range(period, len(tail))):
            return True
    return False


def repeats_calls(turns: Sequence[Sequence[int]]) -> bool:
    """Does an episode end in the same turns again and again? Such a turn calls a tool, or no other would follow.

    >>> repeats_calls([[5, 2], [7, 2], [7, 2], [7, 2], [7, 2]]), repeats_calls([[7, 2], [7, 2], [7, 2], [5, 2]])
    (True, False)
    """
    return is_repetitive([tuple(turn) for turn in turns], REPEAT_CALL_PERIOD, REPEAT_CALL_TIMES)


def is_collapsed(token_ids: Sequence[int], eos_ids: Sequence[int], guided: bool = False) -> bool:
    """Nothing written before the end, or an ending that only repeats itself (one token repeated, endless cycles).

    After a teacher's prefix (`guided`) it may be right to stop at once.
    """
    written = [token for token in token_ids if token not in eos_ids]
    return is_repetitive(written) if written else not guided
