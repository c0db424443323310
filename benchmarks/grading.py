"""What grading costs: processor time of a contained program, and of verdicts, each with its start.

OMP_NUM_THREADS=1 python benchmarks/grading.py --data FOLDER_OF_BENCHMARKS
"""

import argparse
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tropd.evaluation.benchmarks.grading import Grader
from tropd.evaluation.benchmarks.problem import Letter, Number, Problem
from tropd.evaluation.benchmarks.registry import BENCHMARKS, find, load
from tropd.evaluation.graders.code import FunctionTests
from tropd.evaluation.sandbox import Sandbox

NAMES = ("aime24", "math500", "mmlu_redux", "humaneval_plus", "mbpp", "ifeval")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--most", type=int, default=200, help="problems of each benchmark")
    options = parser.parse_args()
    with Sandbox() as sandbox:
        runs = [sandbox.run("print(sum(map(int, input().split())))", b"1 2 3") for _ in range(200)]
    cpu, wall = ([1e3 * getattr(run, f"{kind}_seconds") for run in runs] for kind in ("cpu", "wall"))
    print(
        f"a program: {statistics.median(cpu):.1f} ms of processor time, {statistics.median(wall):.1f} ms on the clock"
    )
    for name in NAMES:
        problems = load(BENCHMARKS[name], find(BENCHMARKS[name], options.data))[: options.most]
        seconds, outcomes = measured(lambda name=name, problems=problems: grade(name, problems))
        print(f"{name}: {1e3 * seconds / len(problems):.1f} ms a verdict, {len(problems)} of them: {dict(outcomes)}")


def grade(name: str, problems: list[Problem]) -> Counter[str]:
    with Grader(name) as grader:
        return Counter(grader.grade(problem, right_response(problem)).outcome for problem in problems)


def right_response(problem: Problem) -> str:
    """Gold, with a blank that makes math-verify work where the answer is no number; any text where there is no gold."""
    check = problem.check
    if isinstance(check, Number):
        return rf"\boxed{{{check.gold}\,}}"
    if isinstance(check, Letter):
        return f"Answer: {check.gold}"
    return f"```python\n{check.reference}\n```" if isinstance(check, FunctionTests) else "One sentence. Another one."


def measured(work: Callable[[], Counter[str]]) -> tuple[float, Counter[str]]:
    """Processor time of this process and of those it waited for."""
    started, before = time.monotonic(), used()
    found = work()
    print(f"    {time.monotonic() - started:.1f} s on the clock")
    return used() - before, found


def used() -> float:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, kinds))


if __name__ == "__main__":
    main()
