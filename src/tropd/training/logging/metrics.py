# ruff: noqa: E501  (the table reads best one metric a line)
"""Every metric of a run, defined once; the documentation is made from this table."""

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Metric:
    """One logged number."""

    name: str  # key in the logs
    unit: str  # what it is measured in
    definition: str  # one sentence
    healthy: str  # what a good run shows
    trouble: str  # what a bad trend means


_TABLE = """
trust/fraction | probability | mean of min(π_T/π_S, 1) over student tokens: an estimate of 1 − TV(π_S, π_T) | rises towards 1 | falls: the student is leaving the teacher
trust/share | share | trust weight over student tokens: the part of them trained as trusted | near trust/fraction with the Bernoulli gate | near 0: almost nothing is learned by K1
trust/advantage_scale | factor | TV-OPD's coefficient of the batch's advantages, from the batches before it; absent without `advantage_scale` | falls below 1 as trust/fraction rises | at 0.1, its least, though trust/fraction has not risen: trust/fraction of the first batch was not typical
regions/num_trust | tokens per rollout batch | sum of trust weights | grows as the student approaches | shrinks while length stays
regions/num_outlier | tokens per rollout batch | sum of outlier weights | shrinks | grows: see log_ratio/p01
regions/num_guidance | tokens per rollout batch | tokens of teacher prefixes in the loss | follows the schedule to 0 | dominates the count: the step is SFT in disguise
log_ratio/negative_share | share | student tokens with r < 0, where the teacher gives the token less probability | falls towards ½ | near 1: the student writes what the teacher would not
log_ratio/p01 | nats | 1% quantile of r | rises towards 0 | very negative: outliers dominate a K1 gradient
log_ratio/ending_outlier_share | share | of the rollouts that end, those whose last token has r < −2: one token a response, whatever their share of all tokens | near 0 | near 1: the two models end with different ids, and under K1 the student forgets how to stop
log_ratio/p50 | nats | median of r | near 0 | drifts from 0
log_ratio/p99 | nats | 99% quantile of r | near 0 | large: the student misses what the teacher is sure of
kl/k1 | nats | mean of −r over student tokens: the K1 estimate of KL(student‖teacher) on the student's states | falls | rises, or turns clearly negative (sampler and scorer disagree)
kl/outlier_forward | nats | mean of the top-k forward-KL value on the tokens that have it | falls | grows without bound: the student's mass leaves the teacher's top-k
teacher/topk_mass | probability | teacher's mass on its own top-k, where requested | above 0.95 | low: k is too small for this teacher
student/topk_mass | probability | student's mass on the teacher's top-k, where requested | rises towards teacher/topk_mass | near 0: outliers are out of the teacher's reach
entropy/student | nats | mean entropy of the student on student tokens | settles near entropy/teacher | falls to 0: mode collapse; rises: noise
entropy/teacher | nats | mean entropy of the teacher on student tokens | steady | rises: the student leads the teacher where it knows nothing
response/length | tokens | mean number of student-written tokens | steady | runs to the budget, or to 1
response/truncated_share | share | rollouts that end without an end-of-sequence token | small | near 1: raise max_completion_length or see repetition
response/eos_share | share | rollouts that end with an end-of-sequence token | near 1 | near 0: the student forgets to stop
response/other_ending_share | share | of the rollouts that end, those that end by another id than the student's tokenizer names | steady, or moves to the teacher's ending | near 1: the saved tokenizer names the new ending (docs/endings.md)
response/unheeded_ending_share | share | rollouts in which the student wrote an ending of the teacher's and continued after it; absent where it stops at all of them | 0 | grows: the student learns to end where nothing ends; set `ending: one_action`
response/repetitive_share | share | rollouts that end in a repeating cycle | 0 | grows: the rollouts are collapsing
response/collapsed_share | share | rollouts that are empty or only repeat themselves | 0 | reaches collapse_share: the guard stops the run
response/excluded_share | share | rollouts excluded from the loss by the masking switches | small | most of the batch is wasted
guidance/fraction | fraction | α of the guidance schedule | as scheduled | not as scheduled
guidance/prefix_length | tokens | mean teacher prefix of a rollout | follows the schedule to 0 | 0 from the start: responses are missing or short
guidance/turns | turns | mean number of turns of a rollout that the teacher wrote or began; absent without tools | follows the schedule to 0 | 0 from the start: the teacher's turns do not fit, or call nothing
guidance/stale_share | share | of the rollouts with a recorded episode, those in which a tool replied differently than recorded, so that the recording was dropped | near 0 | near 1: the recordings are of another environment
agent/turns | turns | mean number of turns of a rollout, those of the teacher included; absent without tools, like all agent metrics | settles | grows to the limit: the student repeats itself
agent/cut_share | share | rollouts that end in an unanswered call, or in a reply: out of turns, or of room | near 0 | grows: raise max_completion_length or max_tool_calling_iterations, or see repetition
agent/cut_reply_share | share | tools' replies longer than max_tool_result_tokens, which were cut; logged where that is set | low | grows: what the student needs may be cut
agent/turn_weight | factor | mean factor of a student token by its turn, under `turn_trust` and `reduction: per_turn`; 1 under the latter alone; absent without either | rises towards 1 | falls: the teacher trusts less of what came before
agent/trust_first_turn | probability | trust/fraction in the first turn that the student wrote | rises towards 1 | see trust/fraction
agent/trust_last_turn | probability | trust/fraction in the last turn of rollouts of several turns | approaches that of the first turn | stays far below it: errors add up over turns
guidance/nll | nats | student's mean negative log-likelihood on prefix tokens; absent where no pass reads them (β = 0 and no rescoring) | falls | rises: forgetting the teacher's states
sampler/logp_gap | nats | mean |sampler − trainer| log-probability of student tokens, of those that the update reads where no pass did before; absent with continuous batching, and where a `rollout_func` returns none | below 0.02 | grows: wrong temperature, stale weights or precision
teacher/nonfinite_tokens | tokens per rollout batch | tokens without a finite teacher score, excluded from the loss | 0 | any: look at the teacher
loss/trust | nats per token | the trust region's part of the loss | small | see kl/k1
loss/outlier | nats per token | the outlier region's part of the loss | falls | see kl/outlier_forward
loss/guidance | nats per token | the prefix's part of the loss | falls to 0 with the schedule | dominates: see regions/num_guidance
loss/reward | nats per token | the mixed-in rewards' part of the loss | small | dominates the teacher's signal
grad_norm | loss per unit of weight | norm of the gradient before clipping (logged by Transformers) | falls, then steady | peaks with log_ratio/p01: outliers drive the update; use a trust region
teacher/<name>/trust_fraction | probability | trust/fraction on the rows of one of several teachers; absent where it had none, like all of its metrics | rises towards 1 | falls while others rise: this teacher's rows are crowded out
teacher/<name>/k1 | nats | kl/k1 on the rows of one of several teachers | falls | rises while others fall: the teachers pull apart
teacher/<name>/entropy | nats | entropy/teacher on the rows of one of several teachers | steady | rises: the student leads this teacher where it knows nothing
teacher/<name>/num_tokens | tokens per rollout batch | trained student tokens on the rows of one of several teachers | in the data's proportion | one teacher has nearly all: long responses count by their tokens
benchmark/<name>/accuracy | share | in an evaluation, for each of eval_benchmarks: mean over problems of the share of their samples that are right | rises | falls while the loss does too: the run learns something else
benchmark/<name>/truncated_share | share | its responses that were cut at eval_benchmarks_max_new_tokens | small | near 1: they are graded before they reach an answer
benchmark/<name>/no_answer_share | share | its responses without an answer in the form that was asked for | falls | near 1: the accuracy is about the form
benchmark/<name>/undecided_share | share | its responses that the grader could not judge, and that count as wrong | 0 | any: see docs/evaluation.md
benchmark/<name>/length | tokens | mean length of its responses | steady | runs to the limit
rollout/engine | code | what wrote the rollouts: 0 Transformers' decoding loop, 1 tropd's, 2 vLLM, 3 Transformers' continuous batching | as meant | 0 where 1 was meant: a warning said why tropd's loop could not be used
speed/rollout | tokens per second | student-written tokens by rollout time | steady | falls: longer tails, smaller batches
speed/teacher | tokens per second | scored tokens by teacher time | steady | falls
speed/update | tokens per second | response tokens by forward-backward time | steady | falls
"""

NAME = "<name>"
"""Stands in the table for the name of each of several teachers, or of a benchmark."""

_ALL = [Metric(*(cell.strip() for cell in line.split(" | "))) for line in _TABLE.strip().splitlines()]

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL if NAME not in metric.name}

METRICS_BY_TEACHER: dict[str, Metric] = {metric.name: metric for metric in _ALL if metric.name.startswith("teacher/<")}
"""Families of metrics: one of each name for each of several teachers."""

METRICS_BY_BENCHMARK: dict[str, Metric] = {
    metric.name: metric for metric in _ALL if metric.name.startswith("benchmark/<")
}
"""Likewise for each benchmark of an evaluation."""


def named_metric(family: str, name: str) -> str:
    """The name of a family's metric for one teacher or benchmark.

    >>> named_metric("teacher/<name>/k1", "math")
    'teacher/math/k1'
    """
    return (METRICS_BY_TEACHER | METRICS_BY_BENCHMARK)[family].name.replace(NAME, name)


@cache
def metric_names(teachers: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Every name that a run with these teachers may log."""
    return (*METRICS, *(named_metric(family, teacher) for teacher in teachers for family in METRICS_BY_TEACHER))


def as_markdown() -> str:
    """The table for the documentation."""
    head = "| metric | unit | what it is | healthy | a bad trend |\n|---|---|---|---|---|\n"
    rows = [
        f"| `{m.name}` | {m.unit} | {m.definition.replace('|', chr(92) + '|')} | {m.healthy} | {m.trouble} |"
        for m in _ALL
    ]
    return head + "\n".join(rows) + "\n"
