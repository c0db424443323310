"""MBPP+: its file stores inputs as JSON, which has no tuples, sets or complex numbers.

Of which types they were is read from the calls in a row's own assertions, and held to them: the inputs of the file's
first calls must come out as the arguments that the assertions write.
"""

import ast
import gzip
import json
from collections.abc import Sequence
from typing import Any

from ...atomic_files import lines_of
from ..graders.code import Call, FunctionTests
from ..graders.values import encode
from .problem import Problem

Row = dict[str, Any]

SAME_ITEMS = frozenset(
    (
        *("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly"),
        *("larg_nnum", "intersection_array", "find_dissimilar", "Diff"),
    )
)
"""Functions whose values may have any order and repetition, as the benchmark's authors grade them."""

SOMETHING = frozenset(("check_str", "text_match_three", "text_starta_endb"))
"""Functions of which only the difference between `None` and something is asked."""

PROMPT = "{text}\n\nGive the whole Python function, with its imports, in one block of code."


def load_mbpp_plus(content: bytes) -> list[Problem]:
    """JSONL, compressed or not."""
    text = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    return [_problem(json.loads(line)) for line in lines_of(text.decode())]


def _problem(row: Row) -> Problem:
    name = row["entry_point"]
    written = arguments_in(row.get("assertion") or row["prompt"], name)
    inputs = [*row["base_input"], *row["plus_input"]]
    if not written or not all(len(one) == len(written[0]) for one in inputs):
        raise ValueError(
            f"{row['task_id']} has no assertion that calls {name} with the number of arguments of its inputs."
        )
    typed = [
        [as_in(each, value) for each, value in zip(zip(*written, strict=True), one, strict=True)] for one in inputs
    ]
    first = [one for one in written if one not in typed[: len(row["base_input"])]]
    if first:
        raise ValueError(
            f"{row['task_id']}: no input of the file matches the arguments {first[0]!r:.80} of its assertion."
        )
    agrees = _same_items if name in SAME_ITEMS else _both_something if name in SOMETHING else None
    tests = FunctionTests(
        defines=name,
        calls=[[name, encode(arguments)] for arguments in typed],
        reference=row["canonical_solution"],
        agrees=agrees,
        tolerance=row["atol"],
    )
    return Problem(str(row["task_id"]), PROMPT.format(text=row["prompt"].strip().strip('"').strip()), tests)


def arguments_in(text: str, name: str) -> list[list[Any]]:
    """The arguments of each call of a function in assertions, one a line; those that are no literals are passed over.

    >>> arguments_in("Sum up.\\nassert f((1, 2), 3) == 6\\nassert g(f([1], 2)) == 3", "f")
    [[(1, 2), 3], [[1], 2]]
    """
    found = []
    for line in text.split("\n"):
        if not line.strip().startswith("assert "):
            continue
        for node in ast.walk(ast.parse(line.strip())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
                try:
                    found.append([ast.literal_eval(argument) for argument in node.args])
                except ValueError:
                    continue
    return found


def as_in(examples: Sequence[Any], value: Any) -> Any:
    """A value of JSON with the types that the examples have at its place.

    >>> as_in([[(1, "a")], []], [[1, "a"], [2, "b"]]), as_in([{1, 2}], [3]), as_in([1 + 2j], "3j")
    ([(1, 'a'), (2, 'b')], {3}, 3j)
    """
    kinds = {type(example) for example in examples}
    if kinds & {complex} and isinstance(value, str):
        return complex(value)
    if isinstance(value, dict):
        inner = [item for example in examples if isinstance(example, dict) for item in example.values()]
        keys = [key for example in examples if isinstance(example, dict) for key in example]
        as_key = int if keys and all(isinstance(one, int) for one in keys) else str
        return {as_key(key): as_in(inner, item) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    containers = [example for example in examples if isinstance(example, list | tuple | set)]
    same_length = [one for one in containers if isinstance(one, tuple) and len(one) == len(value)]
    if same_length and len({type(item) for one in same_length for item in one}) > 1:
        items = [as_in([one[place] for one in same_length], item) for place, item in enumerate(value)]
    else:
        inner = [item for one in containers for item in one]
        items = [as_in(inner, item) for item in value]
    kind = next((kind for kind in (set, tuple) if kind in kinds), list)
    return kind(items)


def _same_items(call: Call, expected: Any, given: Any) -> bool:
    if not isinstance(given, list | tuple | set | frozenset) or not isinstance(
        expected, list | tuple | set | frozenset
    ):
        return bool(given == expected)
    return {repr(item) for item in given} == {repr(item) for item in expected}


def _both_something(call: Call, expected: Any, given: Any) -> bool:
    return (expected is None) == (given is None)
