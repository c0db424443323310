"""Verdicts on responses to problems, by the grader that each problem asks for."""

from contextlib import ExitStack
from typing import Any

from ..graders.choice import grade_choice
from ..graders.code import CodeGrader
from ..graders.instructions import InstructionGrader, InstructionTests
from ..graders.mathematics import MathematicsGrader
from ..graders.verdict import Verdict
from .problem import Letter, Number, Problem


class Grader:
    """Judges the problems of one benchmark; starts what it needs at the first response that needs it.

    Args:
        benchmark: its name, which the checkers of instructions ask for.

    Use it as a context manager.
    """

    def __init__(self, benchmark: str) -> None:
        self._benchmark = benchmark
        self._open = ExitStack()
        self._graders: dict[type, Any] = {}

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def grade(self, problem: Problem, response: str, thinking_opened: bool = False) -> Verdict:
        """The verdict on one response.

        Raises:
            ValueError: the grader cannot be had here: a package is missing, or the sandbox.
        """
        check = problem.check
        if isinstance(check, Letter):
            return grade_choice(response, check.gold, check.choices, thinking_opened)
        if isinstance(check, Number):
            return self._one(MathematicsGrader).grade(response, check.gold, thinking_opened, check.hashes)
        if isinstance(check, InstructionTests):
            return self._one(InstructionGrader, self._benchmark).grade(response, check, thinking_opened)
        return self._one(CodeGrader).grade(response, check, thinking_opened)

    def _one(self, kind: type, *arguments: Any) -> Any:
        if kind not in self._graders:
            self._graders[kind] = self._open.enter_context(kind(*arguments))
        return self._graders[kind]
