"""What a probe of a built trainer records. Made by `probe`, read by the preflight and the time estimate.

N counts the scored response tokens of all ranks, row after row; K is the teacher's top-k.
"""

from dataclasses import dataclass, fields

from torch import Tensor

from ..teacher.endings import PairEndings
from ..training.records import Rollout


@dataclass(frozen=True)
class ProbedTokens:
    """What both models say about each token that the student wrote; all [N], on the CPU.

    Attributes:
        rollout: number of the token's rollout in `Probe.rollouts`.
        position: place in its response, 0 for the first token.
        student_logp: log π_old: the sampler's where it returned one, else the trainer's. r is relative to it.
        trainer_logp: log π_S, the trainer's own.
        student_entropy: nats.
        student_collision: Σ_v π_S(v)²; with it ‖e_x − π_S‖² = 1 − 2 π_S(x) + Σ π_S².
        student_topk_mass: the student's mass on the teacher's top-k.
        teacher_logp: log π_T; not finite where the teacher has no score.
        teacher_entropy: nats.
        teacher_topk_mass: the teacher's mass on its top-k.
    """

    rollout: Tensor
    position: Tensor
    student_logp: Tensor
    trainer_logp: Tensor
    student_entropy: Tensor
    student_collision: Tensor
    student_topk_mass: Tensor
    teacher_logp: Tensor
    teacher_entropy: Tensor
    teacher_topk_mass: Tensor


@dataclass(frozen=True)
class ProbedPrompts:
    """How both models read the distinct prompts, at temperature 1; a prompt's first token is context only.

    Attributes:
        num_prompts: distinct prompts, by what student and teacher see.
        student_logp: of every prompt token as the student sees the prompts.
        teacher_logp: of every prompt token as the teacher sees them: other tokens where its context differs.
    """

    num_prompts: int
    student_logp: Tensor
    teacher_logp: Tensor


@dataclass(frozen=True)
class ProbedEndings:
    """What each model gives to every id that may end a response, at the P places where one ends or would.

    Attributes:
        pair: what ends a response, and what is done about it.
        ids: [C] ids of E and every other special id of the tokenizers.
        student: [P, C], probabilities at the sampling temperature, each id by itself.
        teacher: [P, C], likewise; 0 for an id beyond its top-k.
        student_ends: [P], the student's response ended there.
        teacher_ends: [P], an ending is what the teacher finds likeliest there.
    """

    pair: PairEndings
    ids: tuple[int, ...]
    student: Tensor
    teacher: Tensor
    student_ends: Tensor
    teacher_ends: Tensor


@dataclass(frozen=True)
class ProbeTimes:
    """Seconds of each stage (the slowest rank's) and what they were spent on (of all ranks).

    The first batch pays for what is made once (kernels, caches), so these are upper bounds.

    Attributes:
        rollout_seconds: sampling, chat template included.
        student_seconds: the student's scoring pass, the one that training makes.
        teacher_seconds: the teacher's scoring pass, with its top-k on every token.
        num_processes: ranks that worked side by side.
        rows_per_rank: rollouts that a rank samples at once: the entry for each batch.
        longest_responses: response tokens of each batch's longest rollout: how many times the sampler stepped.
        prompt_tokens: prompt tokens of all rollouts, each counted as often as it was read.
        response_tokens: tokens written.
        scored_tokens: tokens scored.
    """

    rollout_seconds: float
    student_seconds: float
    teacher_seconds: float
    num_processes: int
    rows_per_rank: tuple[int, ...]
    longest_responses: tuple[int, ...]
    prompt_tokens: int
    response_tokens: int
    scored_tokens: int

    def __add__(self, other: "ProbeTimes") -> "ProbeTimes":
        """Of two probes, one after the other."""
        joined = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return ProbeTimes(**joined | {"num_processes": self.num_processes})


@dataclass(frozen=True)
class Probe:
    """What `probe` saw; the same on every rank.

    Attributes:
        rollouts: every rollout, of all ranks.
        tokens: the student's tokens.
        prompts: how the prompts are read.
        endings: how responses end.
        times: how long each stage took.
        top_k: K.
        topk_mass_curve: [K], the teacher's mean mass on its first 1, 2, … K tokens.
        vocab_size: entries that both models have.
        temperature: of sampling and scoring.
        call_opener: the token that a call of a tool begins with; `None` without tools.
    """

    rollouts: list[Rollout]
    tokens: ProbedTokens
    prompts: ProbedPrompts
    endings: ProbedEndings
    times: ProbeTimes
    top_k: int
    topk_mass_curve: Tensor
    vocab_size: int
    temperature: float
    call_opener: int | None = None
