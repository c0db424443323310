"""Guidance over turns: which turns of an episode the teacher writes, and what it writes there.

The host's tool loop takes any ids for a turn: it parses them, runs their calls in the row's own environment and
continues. So it is given a teacher's turn instead of the student's, and nothing is simulated.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import trl.trainer.grpo_trainer as host

from ..objective.methods import Method
from ..objective.randomness import addressed_uniforms
from ..objective.turns import takeover_probability
from ..rollout.engine.noise import PREFIX_STREAM, AddressedNoise, Place, decoding_through
from ..rollout.guidance import RecordedTurn, check_response_ids, recorded_turns
from ..rollout.turns import Turns
from ..teacher.context import Row, with_observation
from ..teacher.names import Name, rows_by_name
from ..teacher.teachers import naming
from .distributed.sharding import shards_teacher
from .distributed.tool_loop import writes_together
from .guards.faults import teacher_guard
from .records import Rollout

TURN_STREAM = 7
"""Addressed draws of who writes a turn, where each is the teacher's with some probability."""


@dataclass
class _Episode:
    """What guidance knows of one row."""

    recorded: list[RecordedTurn]  # the teacher's episode of the data; empty where there is none
    tokens: int | None = None  # how many more the teacher may write; `None` where they are not counted
    turns: int | None = None  # likewise whole turns
    turn: int = 0  # number of the next one
    follows: bool = True  # is every turn so far the recorded one?
    stale: bool = False  # has a tool answered otherwise than in the recording?
    is_over: bool = False  # the student writes all turns from here on


@dataclass(frozen=True)
class Start:
    """The teacher's tokens that a turn begins with; with `is_whole`, the whole turn."""

    ids: list[int] = field(default_factory=list)
    is_whole: bool = False


@dataclass(frozen=True)
class _Proposal:
    """A turn as the teacher would write it."""

    ids: list[int]  # without an ending
    ending: int | None  # how it ends; `None` where it was cut
    is_last: bool  # it calls no tool


@dataclass
class TurnGuidance:
    """Guidance of one batch's rows.

    `prefix`: the teacher begins each episode, and the student writes everything from its own first turn (or token) on.
    `mixed`: each turn is the teacher's with probability α, whoever wrote the others. `trust`: with α (1 − A), where A
    is the mean acceptance of all that the row has written so far. The last turn, which calls no tool, is begun by the
    teacher at most: where turns are counted it is all the student's, where tokens are, `guidance_min_tail` of it are.
    """

    trainer: Any  # a built `TrOPDTrainer`
    rows: Sequence[Row]  # as the data have them
    first_row: int  # number of the first of them in the whole step
    fraction: float  # α of the schedule, above 0
    method: Method  # the stage in force
    ending_ids: Sequence[int]  # every id that ends a response of either model

    def __post_init__(self) -> None:
        self.by_turns = guidance_unit(self.trainer) == "turns"
        self.pattern = self.trainer.args.guidance_pattern
        self.is_drawn = self.pattern != "prefix"
        self._episodes: list[_Episode] = []
        self._teacher_contexts: list[list[int]] = []
        self._prompt_lengths: list[int] = []

    def begin(self, prompts: Sequence[Any], prompt_ids: Sequence[list[int]]) -> None:
        """Take the prompts, which an environment has just made."""
        rows = [with_observation(row, prompt) for row, prompt in zip(self.rows, prompts, strict=True)]
        self._teacher_contexts = self.trainer.teachers.contexts_for(rows, prompt_ids)
        self._prompt_lengths = [len(ids) for ids in prompt_ids]
        self._episodes = [self._episode(row, list(ids)) for row, ids in zip(rows, prompt_ids, strict=True)]

    def starts(self, turns: Turns, contexts: Sequence[list[int]], places: Sequence[Place]) -> list[Start]:
        """What the teacher writes of this turn, row by row.

        `turns` has the rows that it asks for, and all rows' messages after their prompts; `contexts` and `places`, row
        in the step and position in the response, are of the rows that it asks for.
        """
        asked, messages = turns.asked or [], turns.messages
        chances = [self.fraction] * len(asked)
        if self.pattern == "trust":
            chances = self._chances(turns, contexts)
        rooms = [self._room(self._episodes[row], position) for row, (_, position) in zip(asked, places, strict=True)]
        guided = [i for i, row in enumerate(asked) if rooms[i] > 0 and self._is_teachers(row, chances[i])]
        proposals: dict[int, _Proposal] = {}
        for i in guided:
            recorded = self._recorded_turn(asked[i], messages)
            if recorded is not None:
                proposals[i] = recorded
        missing = [i for i in guided if i not in proposals and not self._is_handed_over(asked[i])]
        if missing:
            rows, read = [asked[i] for i in missing], [contexts[i] for i in missing]
            proposals |= dict(zip(missing, self._write(rows, read, [places[i] for i in missing]), strict=True))
        starts = [
            self._take(self._episodes[row], proposals[i], places[i][1]) if i in proposals else Start()
            for i, row in enumerate(asked)
        ]
        for i, row in enumerate(asked):
            self._episodes[row].turn += 1
            self._episodes[row].follows &= starts[i].is_whole
        return starts

    def is_stale(self, row: int) -> bool | None:
        """Has a tool answered otherwise than in the row's recording? `None` where there is none to follow."""
        episode = self._episodes[row]
        return episode.stale if len(episode.recorded) > 1 else None

    # ------------------------------------------------------------------ who

    def _is_teachers(self, row: int, chance: float) -> bool:
        episode = self._episodes[row]
        if self.is_drawn:
            trainer, number = self.trainer, self.first_row + row
            draws = addressed_uniforms(
                trainer.args.seed, trainer.state.global_step, [number], episode.turn + 1, TURN_STREAM
            )
            return bool(draws[0, -1] < chance)
        return not episode.is_over and episode.tokens != 0 and episode.turns != 0

    def _chances(self, turns: Turns, contexts: Sequence[list[int]]) -> list[float]:
        """The probability that the teacher takes over each row's turn, given its acceptance of the turns before."""
        rows = [row for row in turns.asked or [] if turns.written[row]]
        if not rows:  # the first turn
            return [0.0] * len(contexts)
        so_far = [
            Rollout(
                row=self.first_row + row,
                prompt_ids=context[: self._prompt_lengths[row]],
                teacher_context=self._teacher_contexts[row],
                response=context[self._prompt_lengths[row] : self._prompt_lengths[row] + turns.written[row][-1].stop],
                external=[not mark for mark in _inside(turns.written[row], turns.written[row][-1].stop)],
                guided=_inside(turns.guided[row], turns.written[row][-1].stop),
                teacher=self.trainer.teachers.name_for(self.rows[row]),
            )
            for row, context in zip(rows, contexts, strict=True)
        ]
        return [
            takeover_probability(accepted, accepted.isfinite(), self.fraction)
            for accepted in self.trainer.acceptances(so_far)
        ]

    def _episode(self, row: Row, prompt_ids: list[int]) -> _Episode:
        """A row before its first turn, and how much of it the teacher writes."""
        trainer, response = self.trainer, row.get("teacher_response")
        recorded: list[RecordedTurn] = []
        if response is not None:
            own = trainer.teachers.contexts[trainer.teachers.name_for(row)].student_options(row)
            options = trainer.chat_template_kwargs | own
            recorded = recorded_turns(
                response, row["prompt"], prompt_ids, trainer._tokenizer, self.ending_ids, **options
            )
            check_response_ids([token for turn in recorded for token in turn.ids], row, trainer._student_vocab_size)
        if self.is_drawn:
            return _Episode(recorded)
        # The epsilon undoes rounding, as in `prefix_length`.
        if self.method.guidance_length == "cap":
            return _Episode(recorded, tokens=int(self.fraction * trainer.max_completion_length + 1e-9))
        if not recorded:
            if self.by_turns:
                raise ValueError(
                    f"guidance_length is 'share', but prompt {row['prompt']!r:.60} has no teacher_response whose turns "
                    "could be counted. Give it one, set guidance_length: cap (of max_completion_length tokens), or "
                    "guidance_pattern: mixed or trust."
                )
            return _Episode(recorded)
        if self.by_turns:
            return _Episode(recorded, turns=int(self.fraction * len(recorded) + 1e-9))
        length = sum(len(turn.ids) + 1 for turn in recorded) - 1
        return _Episode(recorded, tokens=int(self.fraction * length + 1e-9))

    # ------------------------------------------------------------------ what

    def _recorded_turn(self, row: int, messages: Any) -> _Proposal | None:
        """The recorded turn, if all before it went as in the recording."""
        episode = self._episodes[row]
        if not episode.follows or episode.turn >= len(episode.recorded):
            return None
        turn = episode.recorded[episode.turn]
        told = [] if messages is None else [str(m["content"]) for m in messages[row] if m.get("role") == "tool"]
        if told != list(turn.replies):
            episode.stale, episode.follows = True, False
            return None
        is_last = episode.turn == len(episode.recorded) - 1
        ending = None if is_last else (self.trainer._tokenizer.eos_token_id if turn.ending is None else turn.ending)
        return _Proposal(list(turn.ids), ending, is_last)

    def _is_handed_over(self, row: int) -> bool:
        """Does the student write the rest, because the recording is stale and a sharded teacher cannot write?"""
        return self._episodes[row].stale and not self.is_drawn and shards_teacher(self.trainer)

    def _write(self, asked: Sequence[int], contexts: Sequence[list[int]], places: Sequence[Place]) -> list[_Proposal]:
        """Turns that the teachers write now; rollouts of a prompt share them as long as they have read the same."""
        trainer = self.trainer
        if shards_teacher(trainer):
            raise ValueError(
                f"prompt {self.rows[asked[0]].get('prompt')!r:.60} has no recorded turn of a teacher to continue "
                "(teacher_response), and a sharded teacher cannot write while training. Record episodes before "
                "(docs/agents.md), or set shard_teacher: false."
            )
        each = 1 if self.is_drawn else trainer.num_generations
        keys = [
            ((place[0] // each * each, place[1]), tuple(context))
            for place, context in zip(places, contexts, strict=True)
        ]
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        names = [trainer.teachers.name_for(self.rows[row]) for row in asked]
        written: dict[Any, _Proposal] = {}
        writers = sorted(first.values())
        for name, mine in rows_by_name([names[i] for i in writers]).items():
            of_name = [writers[n] for n in mine]
            budget = max(self._room(self._episodes[asked[i]], places[i][1]) for i in of_name)
            read = [
                [*self._teacher_contexts[asked[i]], *contexts[i][self._prompt_lengths[asked[i]] :]] for i in of_name
            ]
            places_read = [keys[i][0] for i in of_name]
            texts = write_by_teacher(trainer, name, read, places_read, self.ending_ids, budget)
            for i, ids in zip(of_name, texts, strict=True):
                written[keys[i]] = self._as_proposal(ids, contexts[i], asked[i], budget)
        return [written[key] for key in keys]

    def _as_proposal(self, ids: list[int], context: list[int], row: int, budget: int) -> _Proposal:
        if len(ids) >= budget:
            return _Proposal(ids, None, is_last=False)
        ending = int(self.trainer._tokenizer.eos_token_id)
        return _Proposal(ids, ending, is_last=not self._calls([*ids, ending], context, row))

    def _calls(self, ids: list[int], context: list[int], row: int) -> bool:
        """Does the host read a call of a tool in a turn?"""
        trainer, tools = self.trainer, self.trainer.tools
        if trainer.environment_factories is not None:
            tools = trainer._env_tools[trainer._batch_environments[row]]
        if not tools:
            return False
        return bool(host.parse_response(trainer._tokenizer, ids, prefix=context, tools=tools).get("tool_calls"))

    # ------------------------------------------------------------------ how much

    def _room(self, episode: _Episode, position: int) -> int:
        """Tokens that a turn of the teacher's may take."""
        room = int(self.trainer.max_completion_length) - position
        if self.by_turns or episode.tokens is None:
            return room
        return min(room, episode.tokens + int(self.trainer.args.guidance_min_tail))

    def _take(self, episode: _Episode, proposal: _Proposal, position: int) -> Start:
        tail, room = self.trainer.args.guidance_min_tail, self.trainer.max_completion_length - position
        size = len(proposal.ids) + 1
        ends = proposal.ending is not None and not proposal.is_last and size <= room - tail
        if self.by_turns:
            if not ends:
                episode.is_over = True
                return Start()
            episode.tokens = None if episode.tokens is None else max(episode.tokens - size, 0)
            episode.turns = None if episode.turns is None else episode.turns - 1
            return Start([*proposal.ids, proposal.ending], is_whole=True)  # type: ignore[list-item]
        allowed = int(self.fraction * len(proposal.ids) + 1e-9) if episode.tokens is None else episode.tokens
        if ends and episode.tokens is not None and size <= allowed:
            episode.tokens -= size
            return Start([*proposal.ids, proposal.ending], is_whole=True)  # type: ignore[list-item]
        episode.is_over = True
        return Start(proposal.ids[: max(0, min(allowed, len(proposal.ids) - tail, room - tail))])


def check_pattern(trainer: Any) -> None:
    """Refuse turns of the teacher's that weights sharded over the processes cannot give.

    No recording has turns that follow one of the student's, and to measure the trust of turns, all processes would need
    the same number of turns.

    Raises:
        ValueError: with the field, and what can be set instead.
    """
    pattern = trainer.args.guidance_pattern
    if pattern == "mixed" and shards_teacher(trainer):
        raise ValueError(
            "guidance_pattern is 'mixed', in which the teacher also continues after student turns, which no recording "
            "has, but its weights are sharded over the processes (FSDP, ZeRO-3), so that it cannot write while "
            "training. Choose guidance_pattern: prefix, or with FSDP set shard_teacher: false."
        )
    if pattern == "trust" and (writes_together(trainer) or shards_teacher(trainer)):
        raise ValueError(
            "guidance_pattern is 'trust', for which both models read each turn while the episode continues, but their "
            "weights are sharded over the processes (FSDP, ZeRO-3), which may have different numbers of turns. Choose "
            "guidance_pattern: prefix (or mixed, with FSDP and shard_teacher: false), or run without sharding."
        )


def _inside(stretches: Sequence[slice], length: int) -> list[bool]:
    marks = [False] * length
    for stretch in stretches:
        marks[stretch] = [True] * (stretch.stop - stretch.start)
    return marks


def guidance_unit(trainer: Any) -> str:
    """`tokens` or `turns`: as set, else turns where there are tools."""
    return str(trainer.args.guidance_unit or ("turns" if trainer.tools else "tokens"))


def write_by_teacher(
    trainer: Any,
    name: Name,
    contexts: list[list[int]],
    places: list[Place],
    ending_ids: Sequence[int],
    max_new_tokens: int,
) -> list[list[int]]:
    """What a teacher writes after `contexts` during training, without endings.

    A teacher of this process draws by row and position, with Transformers' `generate` whatever writes the student's
    rollouts; another engine is given seeds. `places` has the row in the whole step and the position at which each goes
    on; each is cut at `max_new_tokens`.
    """
    args, teacher, noise = trainer.args, trainer.teachers.by_name[name], None
    if args.addressed_sampling is not False:
        step = trainer.state.global_step
        noise = AddressedNoise(args.seed, step, PREFIX_STREAM, places, rows_at_once=args.rollout_batch_size)
    through = nullcontext() if noise is None or teacher.model is None else decoding_through(teacher.model, noise)
    with teacher_guard(trainer.moment(), args.output_dir), naming(name), through:
        return teacher.write(  # type: ignore[no-any-return]
            contexts,
            pad_id=min(trainer._tokenizer.pad_token_id, teacher.vocab_size - 1),  # any id that it has
            eos_ids=ending_ids,
            max_new_tokens=max_new_tokens,
            temperature=trainer.temperature,
            vocab_limit=trainer._student_vocab_size,
            draws=None if noise is None else noise.address,
        )
