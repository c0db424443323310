"""Mathematics: the last closed box after the last thought, compared with the gold answer."""

import json
import re
from contextlib import AbstractContextManager
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from importlib.util import find_spec

from ..sandbox import Limits, Sandbox
from .text import behind_thinking, last_box
from .verdict import NO_ANSWER, RIGHT, UNDECIDED, WRONG, Verdict

LIMITS = Limits(cpu_seconds=5, wall_seconds=300.0, memory_bytes=2 << 30)
"""For one comparison; the wall clock only ends what is stuck, and never what is slow on a busy machine."""

PACKAGES = ("math_verify", "latex2sympy2_extended", "antlr4", "sympy", "mpmath")

VERSIONS = ("math-verify", "latex2sympy2-extended", "antlr4-python3-runtime", "sympy")
"""The distributions that decide a verdict."""

COMPARE = "from tropd.evaluation.graders.symbolic import answer_question; answer_question()"

ORNAMENTS = re.compile(r"\\[!,;: ]|\\\$|\$|\{,\}(?=\d{3})|\\(?:left|right)\b|\s+")

GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")

LONGEST_NUMBER = 1000

ANY_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+")

GSM8K_ANSWER = re.compile(r"####\s*([^\n]+)")


def as_number(text: str) -> Decimal | None:
    r"""A number as it is written in decimal digits, or `None` for anything else.

    >>> as_number("033"), as_number("27.0") == 27, as_number(r"\$1{,}200"), as_number("x=3")
    (Decimal('33'), True, Decimal('1200'), None)
    """
    bare = ORNAMENTS.sub("", text[: 2 * LONGEST_NUMBER]).rstrip(".")
    if GROUPED.fullmatch(bare):
        bare = bare.replace(",", "")
    if len(bare) > LONGEST_NUMBER or not NUMBER.fullmatch(bare):
        return None
    try:
        return Decimal(bare)
    except InvalidOperation:
        return None


def ends_in_number(response: str, gold: str) -> bool | None:
    """Is the last number that a response holds the gold one? A lenient rule, that takes a cut response as it is.

    >>> ends_in_number("we get 33 and then", "033"), ends_in_number("$1,200.", "1200"), ends_in_number("so x", "x")
    (True, True, None)
    """
    expected = as_number(gold)
    if expected is None:
        return None
    found = ANY_NUMBER.findall(response)
    return bool(found) and as_number(found[-1]) == expected


class MathematicsGrader(AbstractContextManager["MathematicsGrader"]):
    """Grades against a gold answer: numbers as numbers, and everything else by math-verify in the sandbox.

    One process is started at the first answer that is no plain number, and none where all are. Close it, or use it as
    a context manager.
    """

    def __init__(self) -> None:
        self._sandbox: Sandbox | None = None

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._sandbox is not None:
            self._sandbox.close()
            self._sandbox = None

    def grade(self, response: str, gold: str, thinking_opened: bool = False, hashes: bool = False) -> Verdict:
        """Is the last boxed answer of `response` the gold one?

        Where the gold answer is a number, the verdict's details say what a lenient rule would: `last_number`.

        Args:
            response: the model's.
            gold: the answer, as LaTeX or a number.
            thinking_opened: see `text.behind_thinking`.
            hashes: a line `#### 18` is an answer as well, where there is no box (the form of GSM8K's own solutions).

        Raises:
            ValueError: math-verify is needed and not installed.
            SandboxRefused: it is needed, and this machine cannot contain it.
        """
        strict = self._strict(response, gold, thinking_opened, hashes)
        lenient = ends_in_number(response, gold)
        boxed = last_box(behind_thinking(response, thinking_opened)) is not None
        details = {"boxed": boxed} | ({} if lenient is None else {"last_number": strict.outcome == RIGHT or lenient})
        return replace(strict, details=details)

    def _strict(self, response: str, gold: str, thinking_opened: bool, hashes: bool) -> Verdict:
        text = behind_thinking(response, thinking_opened)
        answer = last_box(text)
        if answer is None and hashes:
            lines = GSM8K_ANSWER.findall(text)
            answer = lines[-1].strip() if lines else None
        if answer is None:
            return Verdict(NO_ANSWER, why="no closed box" if text else "no text, or none after the thinking")
        expected, given = as_number(gold), as_number(answer)
        if expected is not None and given is not None:
            return Verdict(RIGHT if expected == given else WRONG, answer)
        if " ".join(answer.split()) == " ".join(gold.split()):
            return Verdict(RIGHT, answer)
        return self._compare(answer, gold)

    def _compare(self, answer: str, gold: str) -> Verdict:
        question = json.dumps({"answer": answer, "gold": gold}).encode()
        outcome = self._start().run(COMPARE, question, LIMITS)
        if outcome.succeeded:
            said = json.loads(outcome.stdout)
            if not said["gold_read"]:
                return Verdict(UNDECIDED, answer, "math-verify cannot read the gold answer")
            return Verdict(RIGHT if said["equal"] else WRONG, answer)
        reason = "stopped at the limit of processor time" if outcome.ended == "cpu" else outcome.last_words
        return Verdict(UNDECIDED, answer, f"math-verify did not decide: {reason or outcome.ended}")

    def _start(self) -> Sandbox:
        if self._sandbox is None:
            if find_spec("math_verify") is None:
                raise ValueError(
                    "grading an answer that is not a plain number needs math-verify, which is not installed. Install "
                    "it with: pip install 'tropd[eval]'."
                )
            self._sandbox = Sandbox(
                PACKAGES, preload=("math_verify", "tropd.evaluation.graders.symbolic:learn_grammar")
            )
        return self._sandbox
