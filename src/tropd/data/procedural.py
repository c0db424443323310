"""Problems that reasoning-gym makes: prompts, the package's own scorer as a reward, and an evaluation.

A source is written `reasoning_gym:TASK,TASK?size=500&seed=0`. An item is a function of task, options, seed and number,
so nothing is downloaded, and every process has the same ones. Which split an item belongs to is a hash of its question.
"""

import ast
import hashlib
import importlib
import inspect
import json
import math
import re
import textwrap
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ..suggestions import hint
from .files import Record

PREFIX = "reasoning_gym:"

SPLITS = ("train", "validation", "test")

PROMPT = "{question}\n\nGive the final answer between <answer> and </answer>."

JUNK = "no answer at all"
"""An answer that is right nowhere. A scorer that gives it half a point or more would reward anything."""

FIRST_ITEMS = 8
"""A task none of whose first so many items grades its own reference answer is refused."""

ATTEMPTS = 40
"""Items looked at for each that is wanted; in ten there is one of `test`, and small tasks repeat themselves."""

RUNS_TEXT = ("eval", "exec", "compile", "parse_expr", "sympify")
"""Functions that run their text as Python: sympy's parser does, too."""

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclass(frozen=True)
class Spec:
    """A source as it was written.

    Attributes:
        tasks: their names in reasoning-gym.
        size: distinct items of the split, of each task.
        seed: of the items.
        options: of the task, as reasoning-gym's configuration of it calls them.

    >>> Spec.parse("reasoning_gym:leg_counting?size=20&max_animals=4")
    Spec(tasks=('leg_counting',), size=20, seed=0, options={'max_animals': 4})
    """

    tasks: tuple[str, ...]
    size: int = 500
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Spec":
        """The spec of `reasoning_gym:…`.

        Raises:
            ValueError: no task, an option without a value, or one that is out of range.
        """
        names, _, query = text.removeprefix(PREFIX).partition("?")
        tasks = tuple(name for name in names.split(",") if name)
        options: dict[str, Any] = {}
        for part in query.split("&") if query else []:
            name, equals, value = part.partition("=")
            if not (name and equals and value) or name in options:
                raise ValueError(f"{text!r} has the option {part!r}; write each once, as NAME=VALUE, with & between.")
            options[name] = _value(value)
        size, seed = options.pop("size", 500), options.pop("seed", 0)
        if not tasks:
            raise ValueError(f"{text!r} names no task; write {PREFIX}TASK, such as {PREFIX}leg_counting.")
        if type(size) is not int or size < 1:
            raise ValueError(f"{text!r} has size {size!r}; give a whole number of at least 1.")
        if type(seed) is not int or seed < 0:
            raise ValueError(f"{text!r} has seed {seed!r}; give a whole number of at least 0.")
        if options and len(tasks) > 1:
            raise ValueError(
                f"{text!r} has the option {next(iter(options))!r} beside {len(tasks)} tasks; give tasks with options "
                "as sources of their own."
            )
        return cls(tasks, size, seed, options)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def is_procedural(part: str) -> bool:
    """Is a source written as one of reasoning-gym?"""
    return part.startswith(PREFIX)


def procedural_records(part: str, split: str, notes: MutableMapping[str, str] | None = None) -> Iterator[Record]:
    """Rows of `prompt`, `answer`, `task` and `entry`, the item as JSON text, which the reward reads.

    Args:
        part: `reasoning_gym:…`.
        split: `train`, `validation` or `test`.
        notes: is told what was left out, and that a task has fewer items than were asked for.

    Raises:
        ValueError: an unknown task, option or split; a task that cannot be rewarded.
        ModuleNotFoundError: reasoning-gym is not installed.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; the items of {part} are divided into {', '.join(SPLITS)}.")
    spec, told = Spec.parse(part), {} if notes is None else notes
    for task in spec.tasks:
        yield from _items(spec, task, split, told)


def _items(spec: Spec, task: str, split: str, told: MutableMapping[str, str]) -> Iterator[Record]:
    attempts, found, seen = ATTEMPTS * spec.size, 0, set()
    dataset, left_out, graded = _dataset(spec, task, attempts), 0, 0
    for number in range(attempts):
        if found == spec.size:
            return
        if left_out == FIRST_ITEMS and not graded:
            break
        item = dataset[number]
        if item["question"] in seen or split_of(item["question"]) != split:
            continue
        seen.add(item["question"])
        entry = json.dumps(item, default=str)
        if not grades_itself(task, entry):
            left_out += 1
            told[f"{task} left out"] = (
                f"{PREFIX}{task}: left out {left_out} items, whose reference answer its own scorer does not give 1, or "
                "nonsense less than a half."
            )
            continue
        graded, found = graded + 1, found + 1
        values = {"prompt": PROMPT.format(question=item["question"].strip()), "answer": item["answer"]}
        yield Record(f"{PREFIX}{task}[{number}]", values | {"task": task, "entry": entry})
    if not graded:
        raise ValueError(
            f"{PREFIX}{task} is refused: of {left_out} {split} items its scorer gives none 1 for the reference answer "
            "and less than a half for nonsense, so that a reward would mean nothing. Choose another task."
        )
    told[f"{task} short"] = f"{PREFIX}{task}: found {found} different {split} items, not {spec.size}."


def split_of(question: str) -> str:
    """One question in ten belongs to validation, one to test: a function of the question alone.

    >>> [split_of(f"What is {n} + 1?") for n in range(4)]
    ['train', 'train', 'train', 'test']
    """
    bucket = int.from_bytes(hashlib.blake2b(question.encode(), digest_size=8).digest(), "big") % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def grades_itself(task: str, entry: str) -> bool:
    """Does the task's scorer give the reference answer of an item 1, and nonsense less than a half?"""
    return score(task, entry, json.loads(entry)["answer"]) == 1.0 and score(task, entry, JUNK) < 0.5


def score(task: str, entry: str, answer: str | None) -> float:
    """What the task's own scorer gives an answer, in [0, 1]; 0 for one at which it fails, or none.

    Args:
        task: its name.
        entry: the item, as JSON text.
        answer: see `final_answer`.
    """
    scorer = _scorer(task)
    if answer is None:
        return 0.0
    try:
        given = float(scorer(answer, json.loads(entry)))
    except Exception:  # some scorers stumble over what they cannot read; that they read the reference was seen before
        return 0.0
    return min(max(given, 0.0), 1.0) if math.isfinite(given) else 0.0


def final_answer(response: str) -> str | None:
    """The last `<answer>…</answer>` behind the last thought, or else the last line; `None` where there is no text.

    >>> final_answer("<think>12</think>So <answer> 15 </answer>."), final_answer("So it is\\n15\\n"), final_answer(" ")
    ('15', '15', None)
    """
    said = response.rpartition("</think>")[2]
    marked = _ANSWER.findall(said)
    if marked:
        return str(marked[-1]).strip() or None
    lines = said.strip().splitlines()
    return lines[-1].strip() if lines else None


def reasoning_gym_reward(
    completions: Sequence[Any], task: Sequence[str], entry: Sequence[str], **_: Any
) -> list[float]:
    """A reward for TRL: what the scorer of each row's task gives its final answer, in [0, 1]; some give a part.

    Args:
        completions: text, or messages, of which the last one counts.
        task: column of the rows.
        entry: likewise.
    """
    texts = [one if isinstance(one, str) else str(one[-1].get("content") or "") for one in completions]
    rows = zip(texts, task, entry, strict=True)
    return [score(name, item, final_answer(text)) for text, name, item in rows]


# ---------------------------------------------------------------------- the package


def _known_tasks() -> dict[str, tuple[type, type]]:
    importlib.import_module("reasoning_gym")  # its tasks enter themselves
    tasks: dict[str, tuple[type, type]] = importlib.import_module("reasoning_gym.factory").DATASETS
    return tasks


def _kinds(task: str) -> tuple[type, type]:
    known = _known_tasks()
    if task not in known:
        raise ValueError(
            f"reasoning_gym has no task {task!r}{hint(task, list(known))}. It has {', '.join(sorted(known))}."
        )
    return known[task]


def _dataset(spec: Spec, task: str, size: int) -> Any:
    kind, configuration = _kinds(task)
    try:
        made = configuration(**spec.options, seed=spec.seed, size=size)
        return kind(config=made)
    except (TypeError, AssertionError, ValueError) as error:
        options = ", ".join(
            name for name in inspect.signature(configuration).parameters if name not in ("seed", "size")
        )
        raise ValueError(
            f"{PREFIX}{task} cannot be made with {spec.options or 'its own options'} ({error}). Its options are: "
            f"{options}."
        ) from error


@cache
def _scorer(task: str) -> Callable[[str, dict[str, Any]], float]:
    """The scorer of a task.

    Raises:
        ValueError: it would run what a model wrote.
    """
    kind, configuration = _kinds(task)
    if (name := runs_answers(kind)) is not None:
        raise ValueError(
            f"{PREFIX}{task} is refused: its scorer hands the model's answer to {name}, which runs text as Python in "
            "this process. Choose another task."
        )
    scorer: Callable[[str, dict[str, Any]], float] = kind(config=configuration()).score_answer  # type: ignore[call-arg, attr-defined]
    return scorer


def runs_answers(kind: type) -> str | None:
    """The function by which scoring runs an answer as a program; `None` where there is none.

    Read from the source of `score_answer` and of the methods and functions of its module that it calls. What they take
    from the item, `entry`, is the package's own.
    """
    module, left, read = inspect.getmodule(kind), ["score_answer"], set()
    while left:
        name = left.pop()
        function = getattr(kind, name, None) or getattr(module, name, None)
        if name in read or not inspect.isroutine(function):
            continue
        read.add(name)
        for call in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
            if not isinstance(call, ast.Call):
                continue
            called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if called in RUNS_TEXT and not (call.args and _is_of_entry(call.args[0])):
                return called
            if isinstance(call.func, ast.Name) or getattr(getattr(call.func, "value", None), "id", "") in (
                "self",
                "cls",
            ):
                left.append(called)
    return None


def _is_of_entry(value: ast.expr) -> bool:
    while isinstance(value, ast.Subscript):
        value = value.value
    return isinstance(value, ast.Name) and value.id in ("entry", "metadata")
