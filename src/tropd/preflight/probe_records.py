"""What a probe of a built trainer records. Made by `probe`, read by the preflight and the time estimate.

N counts the scored response tokens of all ranks, row after row; K is the teacher's top-k.
"""

from dataclasses import dataclass, fields

from torch import Tensor

from ..teacher.endings import PairEndings
from ..training.records import Rollout


@dataclass(frozen=True)
class ProbedTokens:
    """What both models say about each token that the student wrote; all [N], on the CPU."""

    rollout: Tensor  # number of the token's rollout in `Probe.rollouts`
    position: Tensor  # place in its response, 0 for the first token
    student_logp: Tensor  # log π_old: the sampler's where it returned one, else the trainer's. r is relative to it
    trainer_logp: Tensor  # log π_S, the trainer's own
    student_entropy: Tensor  # nats
    student_collision: Tensor  # Σ_v π_S(v)²; with it ‖e_x − π_S‖² = 1 − 2 π_S(x) + Σ π_S²
    student_topk_mass: Tensor  # the student's mass on the teacher's top-k
    teacher_logp: Tensor  # log π_T; not finite where the teacher has no score
    teacher_entropy: Tensor  # nats
    teacher_topk_mass: Tensor  # the teacher's mass on its top-k


@dataclass(frozen=True)
class ProbedPrompts:
    """How both models read the distinct prompts, at temperature 1; a prompt's first token is context only."""

    num_prompts: int  # distinct prompts, by what student and teacher see
    student_logp: Tensor  # of every prompt token as the student sees the prompts
    teacher_logp: Tensor  # of every prompt token as the teacher sees them: other tokens where its context differs


@dataclass(frozen=True)
class ProbedEndings:
    """What each model gives to every id that may end a response, at the P places where one ends or would."""

    pair: PairEndings  # what ends a response, and what is done about it
    ids: tuple[int, ...]  # [C] ids of E and every other special id of the tokenizers
    student: Tensor  # [P, C], probabilities at the sampling temperature, each id by itself
    teacher: Tensor  # [P, C], likewise; 0 for an id beyond its top-k
    student_ends: Tensor  # [P], the student's response ended there
    teacher_ends: Tensor  # [P], an ending is what the teacher finds likeliest there


@dataclass(frozen=True)
class ProbeTimes:
    """Seconds of each stage (the slowest rank's) and what they were spent on (of all ranks).

    The first batch pays for what is made once (kernels, caches), so these are upper bounds.
    """

    rollout_seconds: float  # sampling, chat template included
    student_seconds: float  # the student's scoring pass, the one that training makes
    teacher_seconds: float  # the teacher's scoring pass, with its top-k on every token
    num_processes: int  # ranks that worked side by side
    rows_per_rank: tuple[int, ...]  # rollouts that a rank samples at once: the entry for each batch
    # response tokens of each batch's longest rollout: how many times the sampler stepped
    longest_responses: tuple[int, ...]
    prompt_tokens: int  # prompt tokens of all rollouts, each counted as often as it was read
    response_tokens: int  # tokens written
    scored_tokens: int  # tokens scored

    def __add__(self, other: "ProbeTimes") -> "ProbeTimes":
        """Of two probes, one after the other."""
        joined = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return ProbeTimes(**joined | {"num_processes": self.num_processes})


@dataclass(frozen=True)
class Probe:
    """What `probe` saw; the same on every rank."""

    rollouts: list[Rollout]  # every rollout, of all ranks
    tokens: ProbedTokens  # the student's tokens
    prompts: ProbedPrompts  # how the prompts are read
    endings: ProbedEndings  # how responses end
    times: ProbeTimes  # how long each stage took
    top_k: int  # K
    topk_mass_curve: Tensor  # [K], the teacher's mean mass on its first 1, 2, … K tokens
    vocab_size: int  # entries that both models have
    temperature: float  # of sampling and scoring
    call_opener: int | None = None  # the token that a call of a tool begins with; `None` without tools
