"""Instructions that can be checked: IFEval and IFBench, by the checkers of if-verifiable, in the sandbox."""

import hashlib
import json
import os
import site
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..sandbox import Limits, Sandbox
from .text import behind_thinking
from .verdict import NO_ANSWER, RIGHT, UNDECIDED, WRONG, Verdict

LIMITS = Limits(cpu_seconds=20, wall_seconds=300.0, memory_bytes=4 << 30)

PACKAGES = (
    *("if_verifiable", "nltk", "langdetect", "immutabledict", "emoji", "syllapy"),
    *("regex", "click", "joblib", "defusedxml", "six"),
)

VERSIONS = ("if-verifiable", "nltk", "langdetect", "emoji", "syllapy")
"""The distributions that decide a verdict."""

CHECK = "from tropd.evaluation.graders.instruction_checks import answer_instructions; answer_instructions()"

IN_A_PACKAGE = "llama_index/core/_static/nltk_cache"
"""Where the wheel of llama-index-core carries NLTK's data."""

TAGGER = {"words:start_verb"}
"""Instructions of IFBench that ask NLTK's tagger, whose data no package carries."""


@dataclass(frozen=True)
class InstructionTests:
    """What a response must follow.

    Attributes:
        prompt: the text that gave the instructions.
        instructions: their names.
        kwargs: the arguments of each.
    """

    prompt: str
    instructions: Sequence[str]
    kwargs: Sequence[dict[str, Any]]


def nltk_folder() -> Path | None:
    """Where NLTK's `punkt_tab` lies: in the places where NLTK looks, or in an installed package."""
    places = [Path(place) for place in os.environ.get("NLTK_DATA", "").split(os.pathsep) if place]
    places += [Path.home() / "nltk_data", Path(sys.prefix, "nltk_data")]
    places += [Path(root, "nltk_data") for root in ("/usr/share", "/usr/local/share", "/usr/lib", "/usr/local/lib")]
    places += [Path(place, IN_A_PACKAGE) for place in (*sys.path, *site.getsitepackages())]
    return next((place for place in places if (place / "tokenizers/punkt_tab/english").is_dir()), None)


def missing_for_instructions() -> str | None:
    """What must be installed before instructions can be graded, as a sentence; `None` if nothing."""
    lacking = [name for name in PACKAGES if find_spec(name) is None]
    if lacking:
        return f"grading instructions needs {', '.join(lacking)}. Install them with: pip install 'tropd[eval]'."
    if nltk_folder() is None:
        return (
            "grading instructions needs NLTK's punkt_tab, which was not found. Install a package that contains it "
            "(pip install --no-deps llama-index-core), or fetch it: python -m nltk.downloader punkt_tab stopwords."
        )
    return None


class InstructionGrader(AbstractContextManager["InstructionGrader"]):
    """Grades a response against the instructions of its prompt. Close it, or use it as a context manager.

    Args:
        benchmark: `ifeval` or `ifbench`.

    Raises:
        ValueError: a package or NLTK's data is missing.
        SandboxRefused: this machine cannot contain the checkers, which are patterns run on a model's text.
    """

    def __init__(self, benchmark: str) -> None:
        missing, folder = missing_for_instructions(), nltk_folder()
        if missing is not None:
            raise ValueError(missing)
        self.benchmark, self._folder = benchmark, str(folder)
        self._tagged = (Path(self._folder) / "taggers/averaged_perceptron_tagger_eng").is_dir()
        loader = f"tropd.evaluation.graders.instruction_checks:load_{benchmark}"
        self._sandbox = Sandbox(
            PACKAGES, preload=(loader,), readable=(self._folder,), environment={"NLTK_DATA": self._folder}
        )

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._sandbox.close()

    def grade(self, response: str, tests: InstructionTests, thinking_opened: bool = False) -> Verdict:
        """Are all instructions followed, loosely (the score) and strictly (in the details)?"""
        text = behind_thinking(response, thinking_opened).strip()
        if not text:
            followed = {kind: [False] * len(tests.instructions) for kind in ("strict", "loose")}
            return Verdict(NO_ANSWER, why="no text, or none after the thinking", details=followed)
        if TAGGER & set(tests.instructions) and not self._tagged:
            return Verdict(UNDECIDED, why=f"{', '.join(TAGGER)} needs NLTK's tagger, which is not installed")
        order = {
            "benchmark": self.benchmark,
            "response": text,
            "prompt": tests.prompt,
            "instructions": list(tests.instructions),
            "kwargs": [{name: value for name, value in given.items() if value} for given in tests.kwargs],
            "seed": int.from_bytes(hashlib.sha256(tests.prompt.encode()).digest()[:8]),
        }
        outcome = self._sandbox.run(CHECK, json.dumps(order).encode(), LIMITS)
        if not outcome.succeeded:
            return Verdict(UNDECIDED, why=f"the checkers did not decide: {outcome.last_words[-300:] or outcome.ended}")
        return _verdict(json.loads(outcome.stdout), tests)


def _verdict(said: dict[str, list[bool]], tests: InstructionTests) -> Verdict:
    strict, loose = said["strict"], said["loose"]
    if len(loose) != len(tests.instructions):
        return Verdict(UNDECIDED, why="the checkers do not support every instruction")
    details = {"strict": strict, "loose": loose}
    failed = [name for name, followed in zip(tests.instructions, loose, strict=True) if not followed]
    return Verdict(
        WRONG if failed else RIGHT, why=f"not followed: {', '.join(failed)}" if failed else "", details=details
    )
