"""Verdicts on responses to problems, by the grader that each problem asks for."""

from contextlib import AbstractContextManager, ExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..graders.choice import grade_choice
from ..graders.code import CodeGrader
from ..graders.instructions import InstructionGrader, InstructionTests, missing_for_instructions
from ..graders.mathematics import MathematicsGrader
from ..graders.reward import RewardTest, grade_by_reward
from ..graders.verdict import Verdict
from ..sandbox import Sandbox
from .problem import Letter, Number, Problem

if TYPE_CHECKING:
    from .registry import Benchmark


def check_gradable(one: "Benchmark") -> None:
    """Refuse what could be answered and not graded."""
    if not one.needs_sandbox:
        return
    if one.grader.startswith("if-verifiable") and (missing := missing_for_instructions()):
        raise ValueError(f"{one.title}: {missing}")
    if "math-verify" in one.grader and find_spec("math_verify") is None:
        raise ValueError(f"{one.title} needs math-verify. Install it with: pip install 'tropd[eval]'.")
    Sandbox().close()


class Grader(AbstractContextManager["Grader"]):
    """Judges the problems of one benchmark; starts what it needs at the first response that needs it.

    Use it as a context manager.
    """

    def __init__(self, benchmark: str) -> None:
        self._benchmark = benchmark
        self._open = ExitStack()
        self._graders: dict[type, Any] = {}

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def grade(self, problem: Problem, response: str, thinking_opened: bool = False) -> Verdict:
        check = problem.check
        if isinstance(check, Letter):
            return grade_choice(response, check.gold, check.choices, thinking_opened)
        if isinstance(check, RewardTest):
            return grade_by_reward(response, check)
        if isinstance(check, Number):
            return self._one(MathematicsGrader).grade(response, check.gold, thinking_opened, check.hashes)
        if isinstance(check, InstructionTests):
            return self._one(InstructionGrader, self._benchmark).grade(response, check, thinking_opened)
        return self._one(CodeGrader).grade(response, check, thinking_opened)

    def _one(self, kind: type, *arguments: Any) -> Any:
        if kind not in self._graders:
            self._graders[kind] = self._open.enter_context(kind(*arguments))
        return self._graders[kind]
