"""Benchmark files as problems. Each loader takes the text of its files, in the order of the registry."""

import ast
import base64
import csv
import gzip
import hashlib
import io
import json
import pickle
import random
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...atomic_files import lines_of
from ...data.procedural import procedural_records, reasoning_gym_reward
from ..graders.choice import LETTERS
from ..graders.code import Call, CallTests, FunctionTests, StreamTests, decode, equality_tests
from ..graders.instructions import InstructionTests
from ..graders.mathematics import GSM8K_ANSWER
from ..graders.reward import RewardTest
from ..graders.values import encode
from .problem import Letter, Number, Problem

Row = dict[str, Any]

BOX_PROMPT = "{problem}\n\nReason step by step, and put your final answer within \\boxed{{}}."

CHOICE_PROMPT = (
    '{question}\n\n{choices}\n\nReason step by step, and end with a line "Answer: X", where X is the letter of the '
    "right choice."
)

COMPLETION_PROMPT = (
    "Complete this Python function. Give the whole function, with its imports, in one block of code.\n\n"
    "```python\n{code}\n```"
)

FUNCTION_PROMPT = (
    "{text}\n\nThe Python function must pass these tests:\n\n```python\n{tests}\n```\n\n"
    "Give the whole function, with its imports, in one block of code."
)

STREAM_PROMPT = (
    "{text}\n\nWrite a Python program that reads standard input and writes the answer to standard output. Give the "
    "whole program in one block of code."
)

METHOD_PROMPT = (
    "{text}\n\nComplete this Python code, and give all of it in one block of code.\n\n```python\n{starter}\n```"
)

METHOD_PREAMBLE = (
    "from typing import *\nfrom collections import *\nfrom functools import *\nfrom itertools import *\n"
    "from heapq import *\nfrom bisect import *\nfrom math import *\n"
    "import collections, functools, heapq, itertools, math"
)
"""What the site that the problems come from imports for every program."""

MBPP_TEST_IDS = range(11, 511)
"""The split for tests, as the authors number it."""

ROOT_TOLERANCE = 1e-4
"""Of HumanEval/32, whose answer is any number that is nearly a root."""


def _jsonl(content: bytes) -> list[Row]:
    return [json.loads(line) for line in lines_of(content.decode())]


def _boxed(identity: Any, problem: str, gold: str, hashes: bool = False, group: str = "") -> Problem:
    return Problem(str(identity), BOX_PROMPT.format(problem=problem.strip()), Number(gold, hashes), group)


def load_answers(*files: bytes) -> list[Problem]:
    """JSONL with `problem` and `answer`: AIME, AMC."""
    rows = [row for content in files for row in _jsonl(content)]
    return [_boxed(row["id"], row["problem"], str(row["answer"])) for row in rows]


def load_math500(content: bytes) -> list[Problem]:
    return [_boxed(row["unique_id"], row["problem"], row["answer"], group=row["subject"]) for row in _jsonl(content)]


def load_gsm8k(content: bytes) -> list[Problem]:
    """The gold answer follows `####`."""
    problems = []
    for number, row in enumerate(_jsonl(content)):
        gold = GSM8K_ANSWER.findall(row["answer"])[-1].strip()
        problems.append(_boxed(number, row["question"], gold, hashes=True))
    return problems


def load_humaneval_plus(content: bytes) -> list[Problem]:
    """Calls with the base inputs and the added ones; the canonical solution gives the values."""
    return [_humaneval_problem(row) for row in _jsonl(gzip.decompress(content))]


def _humaneval_problem(row: Row) -> Problem:
    inputs = [*row["base_input"], *row["plus_input"]]
    tests = FunctionTests(
        defines=row["entry_point"],
        calls=[[row["entry_point"], encode(list(arguments))] for arguments in inputs],
        reference=row["prompt"] + row["canonical_solution"],
        preamble=row["prompt"],
        agrees=is_nearly_a_root if row["entry_point"] == "find_zero" else None,
        tolerance=row["atol"],
    )
    return Problem(row["task_id"], COMPLETION_PROMPT.format(code=row["prompt"].strip()), tests)


def is_nearly_a_root(call: Call, expected: Any, given: Any) -> bool:
    """Is the polynomial whose coefficients were the argument nearly zero there?"""
    (coefficients,) = decode(call[1])
    if not isinstance(given, int | float):
        return False
    return abs(sum(factor * given**power for power, factor in enumerate(coefficients))) <= ROOT_TOLERANCE


def load_mbpp(content: bytes) -> list[Problem]:
    return [_mbpp_problem(row) for row in _jsonl(content) if row["task_id"] in MBPP_TEST_IDS]


def _mbpp_problem(row: Row) -> Problem:
    calls, expected = equality_tests(row["test_list"])
    tests = FunctionTests(
        defines=_called(row["test_list"][0], row["code"]),
        calls=calls,
        reference=row["code"],
        setup=row["test_setup_code"],
        expected=expected,
    )
    prompt = FUNCTION_PROMPT.format(text=row["text"].strip(), tests="\n".join(row["test_list"]))
    return Problem(str(row["task_id"]), prompt, tests)


def _called(assertion: str, code: str) -> str:
    named = {node.id for node in ast.walk(ast.parse(assertion.strip())) if isinstance(node, ast.Name)}
    defined = [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return next(name for name in defined if name in named)


def load_livecodebench(*files: bytes) -> list[Problem]:
    """Public tests, and the private ones where a row has them."""
    return [_livecodebench_problem(row) for content in files for row in _jsonl(content)]


def _livecodebench_problem(row: Row) -> Problem:
    cases = json.loads(row["public_test_cases"]) + private_cases(row.get("private_test_cases") or "[]")
    text, name = row["question_content"].strip(), json.loads(row["metadata"]).get("func_name")
    if name is None:
        tests = StreamTests([(case["input"], case["output"]) for case in cases])
        return Problem(row["question_id"], STREAM_PROMPT.format(text=text), tests, row["difficulty"])
    calls = [([json.loads(line) for line in case["input"].split("\n")], json.loads(case["output"])) for case in cases]
    method = CallTests(f"Solution().{name}", "Solution", calls, METHOD_PREAMBLE)
    prompt = METHOD_PROMPT.format(text=text, starter=row["starter_code"].rstrip())
    return Problem(row["question_id"], prompt, method, row["difficulty"])


class _PlainData(pickle.Unpickler):
    """Reads strings, numbers and containers, and refuses every other thing that a pickle can name."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(
            f"private_test_cases would import {module}.{name}; plain data never does, so the file is refused. Download "
            "it again from its source."
        )


def private_cases(text: str) -> list[Row]:
    """The private tests as their authors pack them: JSON, or JSON in a pickle, compressed and in base 64.

    Raises:
        ValueError: the pickle holds more than plain data.
    """
    if text.lstrip().startswith("["):
        return json.loads(text)
    packed = zlib.decompress(base64.b64decode(text))
    return json.loads(_PlainData(io.BytesIO(packed)).load())


def _choice_problem(identity: str, question: str, choices: Sequence[str], right: int, group: str) -> Problem:
    lines = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    prompt = CHOICE_PROMPT.format(question=question.strip(), choices=lines)
    return Problem(identity, prompt, Letter(LETTERS[right], len(choices)), group)


def load_mmlu(content: bytes) -> list[Problem]:
    """The test split of the zip with its 57 files."""
    problems = []
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in sorted(name for name in archive.namelist() if "/test/" in f"/{name}" and name.endswith(".csv")):
            subject = Path(name).stem.removesuffix("_test")
            rows = csv.reader(io.StringIO(archive.read(name).decode(), newline=""))
            for number, (question, *choices, letter) in enumerate(rows):
                identity = f"{subject}/{number}"
                problems.append(_choice_problem(identity, question, choices, LETTERS.index(letter), subject))
    return problems


def load_mmlu_redux(*files: tuple[str, bytes]) -> list[Problem]:
    """The questions in which no error was found; the files differ in delimiter, and one in encoding."""
    return [problem for name, content in files for problem in _mmlu_redux_subject(name, content)]


def _mmlu_redux_subject(name: str, content: bytes) -> Iterator[Problem]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("mac_roman")
    subject = Path(name).stem.removeprefix("mmlu_")
    delimiter = ";" if ";" in text.split("\n", 1)[0] else ","
    for number, row in enumerate(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)):
        if row["error_type"].strip().lower().replace("_", " ") == "ok":
            choices = [str(choice) for choice in ast.literal_eval(row["choices"])]
            yield _choice_problem(f"{subject}/{number}", row["question"], choices, int(row["answer"]), subject)


def load_gpqa(content: bytes) -> list[Problem]:
    """The choices in an order that the question decides: the same everywhere, and no letter is favoured."""
    problems = []
    for number, row in enumerate(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))):
        right = row["Correct Answer"].strip()
        choices = [right, *(row[f"Incorrect Answer {place}"].strip() for place in (1, 2, 3))]
        order = list(range(4))
        random.Random(hashlib.sha256(row["Question"].encode()).digest()).shuffle(order)
        shuffled = [choices[place] for place in order]
        identity = row.get("Record ID") or str(number)
        domain = row.get("High-level domain") or ""
        problems.append(_choice_problem(identity, row["Question"], shuffled, order.index(0), domain))
    return problems


def load_instructions(content: bytes) -> list[Problem]:
    """IFEval and IFBench."""
    return [
        Problem(
            str(row["key"]), row["prompt"], InstructionTests(row["prompt"], row["instruction_id_list"], row["kwargs"])
        )
        for row in _jsonl(content)
    ]


QUESTION_COLUMNS = ("problem", "question", "prompt")


def load_own(name: str, content: bytes) -> list[Problem]:
    """A user's JSONL: a question under one of `QUESTION_COLUMNS`, and `answer`, graded as mathematics."""
    problems = []
    for number, row in enumerate(_jsonl(content), 1):
        question = _question_of(name, number, row)
        if "answer" not in row:
            raise ValueError(
                f"{name}:{number} has the columns {', '.join(row)}; your own benchmark needs the column answer, or a "
                f"grading function: {name}@package.module:function."
            )
        problems.append(_boxed(row.get("id", number), str(row[question]), str(row["answer"])))
    return problems


def load_rewarded(name: str, function: Callable[..., Any], path: str, content: bytes) -> list[Problem]:
    """A user's JSONL: a question, asked as it stands, and whatever columns the user's function reads."""
    problems = []
    for number, row in enumerate(_jsonl(content), 1):
        column = _question_of(path, number, row)
        prompt, rest = str(row[column]), {name: value for name, value in row.items() if name != column}
        problems.append(Problem(str(row.get("id", number)), prompt, RewardTest(name, function, prompt, rest)))
    return problems


def load_procedural(spec: str) -> list[Problem]:
    """Test items of reasoning-gym; only all of a scorer's points are right."""
    problems = []
    for number, record in enumerate(procedural_records(spec, "test")):
        values = record.values
        columns = {name: values[name] for name in ("task", "entry")}
        test = RewardTest("reasoning_gym", reasoning_gym_reward, values["prompt"], columns)
        problems.append(Problem(str(number), values["prompt"], test))
    return problems


def _question_of(name: str, number: int, row: Row) -> str:
    for column in QUESTION_COLUMNS:
        if column in row:
            return column
    raise ValueError(
        f"{name}:{number} has the columns {', '.join(row)}; your own benchmark needs one of "
        f"{', '.join(QUESTION_COLUMNS)}."
    )
