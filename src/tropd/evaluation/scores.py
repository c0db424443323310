"""Scores of graded responses with their uncertainty, and paired comparisons.

P problems have k samples each; s_p is the share of problem p's samples that are right.
"""

import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .graders.verdict import NO_ANSWER, RIGHT, UNDECIDED, WRONG
from .statistics import Interval, bootstrap_interval


@dataclass(frozen=True)
class Graded:
    """One response with its verdict.

    Attributes:
        problem: its id.
        sample: which of the problem's samples it is.
        outcome: the verdict's.
        tokens: of the response, its ending not counted.
        ended: the model ended it; else it was cut at the longest length.
        group: of the problem.
        details: the verdict's.
    """

    problem: str
    sample: int
    outcome: str
    tokens: int
    ended: bool
    group: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def score(self) -> float:
        return float(self.outcome == RIGHT)


@dataclass(frozen=True)
class Scores:
    """A benchmark's result; shares and accuracies between 0 and 1, `nan` where there is nothing to average.

    Attributes:
        problems: P.
        samples: k, of the problem that has fewest.
        accuracy: avg@k, the mean of s_p.
        error_sampling: its standard error if the same problems were answered again: √Σ s_p (1 − s_p) / (k − 1) / P.
        error_problems: its standard error over problems like these, each a cluster of its samples: sd(s_p) / √P.
        pass_at: k to the probability that one of k samples is right, unbiased.
        accuracy_ended: share of right ones among the responses that the model ended.
        truncated: share of responses that were cut.
        no_answer: share without an answer in the form that was asked for; for mathematics, without a closed box.
        undecided: share that the grader could not judge, and that count as wrong.
        tokens: mean length, and its 50th and 90th percentile.
        tokens_right: mean length of right responses.
        tokens_wrong: mean length of the others.
        unboxed: share without a closed box, where one was asked for; `nan` elsewhere.
        last_number: accuracy by a lenient rule: right as well is a response, cut or not, whose last number is the gold
            one; over the problems whose gold answer is a number, `nan` where there are none.
        seen_problems: how many problems are in the training data; `None` if this was not checked.
        accuracy_seen: on those; `nan` where there are none.
        accuracy_unseen: on the others.
        groups: accuracy of each part of the benchmark, where it has parts.
        instructions: where responses follow instructions: `prompt_strict`, the share of prompts all of whose
            instructions are followed without leniency (accuracy is the lenient share), and the shares of single
            instructions, `instruction_loose` and `instruction_strict`.
    """

    problems: int
    samples: int
    accuracy: float
    error_sampling: float
    error_problems: float
    pass_at: dict[int, float]
    accuracy_ended: float
    truncated: float
    no_answer: float
    undecided: float
    tokens: tuple[float, float, float]
    tokens_right: float
    tokens_wrong: float
    unboxed: float
    last_number: float
    seen_problems: int | None
    accuracy_seen: float
    accuracy_unseen: float
    groups: dict[str, float]
    instructions: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; `null` for what there is not."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        found["pass_at"] = {str(k): value for k, value in self.pass_at.items()}
        found["tokens"] = dict(zip(("mean", "p50", "p90"), self.tokens, strict=True))
        return _without_nan(found)


def score(responses: Sequence[Graded], seen: Collection[str] | None = None) -> Scores:
    """The scores of one benchmark; `seen` are the ids of problems that are in the training data.

    Raises:
        ValueError: there are no responses, or one sample of a problem twice.
    """
    if not responses:
        raise ValueError("there are no graded responses")
    rows = by_problem(responses)
    means = [statistics.fmean(row) for row in rows.values()]
    fewest = min(map(len, rows.values()))
    right = [one for one in responses if one.outcome == RIGHT]
    lenient = [
        replace(one, outcome=RIGHT if one.details["last_number"] else WRONG)
        for one in responses
        if "last_number" in one.details
    ]
    return Scores(
        problems=len(rows),
        samples=fewest,
        accuracy=statistics.fmean(means),
        error_sampling=error_of_sampling(list(rows.values())),
        error_problems=statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.nan,
        pass_at={
            k: statistics.fmean(pass_at(len(row), round(sum(row)), k) for row in rows.values())
            for k in (2**power for power in range(fewest.bit_length()))
        },
        accuracy_ended=_mean([one.score for one in responses if one.ended]),
        truncated=_mean([not one.ended for one in responses]),
        no_answer=_mean([one.outcome == NO_ANSWER for one in responses]),
        undecided=_mean([one.outcome == UNDECIDED for one in responses]),
        tokens=_lengths([one.tokens for one in responses]),
        tokens_right=_mean([one.tokens for one in right]),
        tokens_wrong=_mean([one.tokens for one in responses if one.outcome != RIGHT]),
        unboxed=_mean([not one.details["boxed"] for one in responses if "boxed" in one.details]),
        last_number=_mean([statistics.fmean(row) for row in by_problem(lenient).values()]),
        seen_problems=None if seen is None else sum(problem in seen for problem in rows),
        accuracy_seen=_mean([mean for problem, mean in zip(rows, means, strict=True) if problem in (seen or ())]),
        accuracy_unseen=_mean([mean for problem, mean in zip(rows, means, strict=True) if problem not in (seen or ())]),
        groups=_by_group(responses, rows),
        instructions=_instructions(responses),
    )


def interval(found: Scores) -> tuple[float, float]:
    """The 95% interval of an accuracy over problems like these, after Wilson, so that 0 of 100 has a width as well.

    The number of problems that it counts is the one whose errors would be `error_problems`.

    >>> from types import SimpleNamespace
    >>> low, high = interval(SimpleNamespace(accuracy=0.0, error_problems=0.0, problems=100))
    >>> round(low, 3), round(high, 3)
    (0.0, 0.037)
    """
    p, error = found.accuracy, found.error_problems
    n = p * (1 - p) / error**2 if error > 0 else found.problems
    z = 1.96
    middle, width = (p + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n)
    width *= math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - width), min(1.0, middle + width)


def by_problem(responses: Sequence[Graded]) -> dict[str, list[float]]:
    """The scores of each problem's samples, in the order in which the problems come."""
    rows: dict[str, dict[int, float]] = {}
    for one in responses:
        row = rows.setdefault(one.problem, {})
        if one.sample in row:
            raise ValueError(f"problem {one.problem!r} has its sample {one.sample} twice")
        row[one.sample] = one.score
    return {problem: list(row.values()) for problem, row in rows.items()}


def pass_at(n: int, c: int, k: int) -> float:
    """The probability that one of k samples is right, of which c in n were: 1 − C(n − c, k) / C(n, k), unbiased.

    >>> pass_at(4, 1, 1), pass_at(4, 1, 2), pass_at(4, 3, 2)
    (0.25, 0.5, 1.0)
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {c} right in {n} is undefined; k must be between 1 and n")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def error_of_sampling(rows: Sequence[Sequence[float]]) -> float:
    """Standard error of avg@k with the problems held fixed; `nan` where a problem has one sample.

    >>> round(error_of_sampling([[1, 0], [1, 1]]), 4)
    0.25
    """
    if any(len(row) < 2 for row in rows):
        return math.nan
    return math.sqrt(sum(statistics.variance(row) / len(row) for row in rows)) / len(rows)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def _lengths(tokens: Sequence[int]) -> tuple[float, float, float]:
    ordered = sorted(tokens)
    at = [ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] for share in (0.5, 0.9)]
    return statistics.fmean(tokens), float(at[0]), float(at[1])


def _by_group(responses: Sequence[Graded], rows: dict[str, list[float]]) -> dict[str, float]:
    group_of = {one.problem: one.group for one in responses}
    groups = sorted({group for group in group_of.values() if group})
    means = {problem: statistics.fmean(row) for problem, row in rows.items()}
    return {group: _mean([means[problem] for problem in rows if group_of[problem] == group]) for group in groups}


def _instructions(responses: Sequence[Graded]) -> dict[str, float]:
    """Over the responses that were judged instruction by instruction."""
    judged = [one.details for one in responses if "strict" in one.details]
    if not judged:
        return {}
    each = {kind: [followed for details in judged for followed in details[kind]] for kind in ("loose", "strict")}
    return {
        "prompt_strict": _mean([all(details["strict"]) for details in judged]),
        "instruction_loose": _mean(each["loose"]),
        "instruction_strict": _mean(each["strict"]),
    }


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def compare(runs: Sequence[Sequence[Graded]], reference: Sequence[Sequence[Graded]]) -> Interval:
    """Accuracy of `runs` minus that of `reference` with a 95% interval, problem by problem.

    Seeds and problems are drawn anew together, so the interval covers another training of each and other problems of
    the kind; what samples differ by is in the problems' differences.

    Args:
        runs: graded responses of one method, a list for each seed of its training.
        reference: as many, seed for seed.

    Raises:
        ValueError: another number of seeds, or other problems.
    """
    if len(runs) != len(reference) or not runs:
        raise ValueError(
            f"there are {len(runs)} runs but {len(reference)} reference runs; give one of each for every seed."
        )
    return bootstrap_interval([_differences(*pair) for pair in zip(runs, reference, strict=True)])


def _differences(run: Sequence[Graded], reference: Sequence[Graded]) -> list[float]:
    ours, theirs = by_problem(run), by_problem(reference)
    if set(ours) != set(theirs):
        only = sorted(set(ours) ^ set(theirs))
        raise ValueError(
            f"the two evaluations have different problems: {len(only)} are in only one of them, such as {only[0]!r}. "
            "Compare evaluations on the same files."
        )
    return [statistics.fmean(ours[problem]) - statistics.fmean(theirs[problem]) for problem in sorted(ours)]
