"""Values that a program computed, written down inside of the sandbox and read outside.

Inside, a value is taken apart by its type alone: no method of it is asked, so an object that calls itself equal to
everything is written as what it is, an object of an unknown type, which equals nothing outside.

An encoded value is JSON: null, true, false, a string as ["s", …], an integer as ["i", hexadecimal], a float as ["f",
hexadecimal], a complex number as ["c", re, im], a list, tuple, set or dictionary as ["l" | "t" | "S", […]] and
["d", [[key, value], …]], and anything else as ["?", name of its type].
"""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

Encoded = Any

DEEPEST = 200

LONGEST = 1 << 16
"""Characters of an encoded value that is written whole; a longer one is written as its digest."""


def encode(value: Any, depth: int = 0) -> Encoded:
    """A value as JSON, whatever it is.

    >>> encode((1, "a"))
    ['t', [['i', '0x1'], ['s', 'a']]]
    """
    kind = type(value)
    if value is None or kind is bool:
        return value
    if depth > DEEPEST:
        return ["?", "deep"]
    if issubclass(kind, bytes):
        return ["?", "bytes"]
    for base, write in _WRITERS:
        if issubclass(kind, base):
            return write(value, depth + 1)
    return ["?", kind.__name__]


def _items(letter: str, iterate: Callable[[Any], Any]) -> Callable[[Any, int], Encoded]:
    return lambda value, depth: [letter, [encode(item, depth) for item in iterate(value)]]


_WRITERS: Sequence[tuple[type, Callable[[Any, int], Encoded]]] = (
    (str, lambda value, depth: ["s", str.__str__(value)]),
    (int, lambda value, depth: ["i", hex(int.__add__(value, 0))]),
    (float, lambda value, depth: ["f", float.hex(value)]),
    (complex, lambda value, depth: ["c", float.hex(value.real), float.hex(value.imag)]),
    (list, _items("l", list.__iter__)),
    (tuple, _items("t", tuple.__iter__)),
    (set, _items("S", set.__iter__)),
    (frozenset, _items("S", frozenset.__iter__)),
    (dict, lambda value, depth: ["d", [[encode(k, depth), encode(v, depth)] for k, v in dict.items(value)]]),
)


class Unknown:
    """A value of a type that is not carried outside; equal to nothing, itself included."""

    def __init__(self, name: str):
        self.name = name

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Digest(str):
    """Represents a value that was too long to carry; equal to the digest of an equal value."""


def decode(value: Encoded) -> Any:
    """The value that `encode` wrote.

    >>> decode(encode([1, 2.5, {"a": (True, None)}]))
    [1, 2.5, {'a': (True, None)}]
    """
    if value is None or isinstance(value, bool):
        return value
    if not isinstance(value, list) or not value or value[0] not in _READERS:
        raise ValueError(f"{str(value)[:40]} is not an encoded value")
    return _READERS[value[0]](*value[1:])


_READERS: dict[str, Callable[..., Any]] = {
    "s": str,
    "i": lambda text: int(text, 16),
    "f": float.fromhex,
    "c": lambda real, imaginary: complex(float.fromhex(real), float.fromhex(imaginary)),
    "l": lambda items: [decode(item) for item in items],
    "t": lambda items: tuple(decode(item) for item in items),
    "S": lambda items: frozenset(decode(item) for item in items),
    "d": lambda items: {decode(key): decode(value) for key, value in items},
    "?": Unknown,
    "h": Digest,
}


def written(value: Any) -> Encoded:
    """The encoded value, or ["h", digest] where that would be long."""
    if isinstance(value, str | list | tuple | set | frozenset | dict) and len(value) > LONGEST:
        return ["h", digest(value)]
    encoded = encode(value)
    return encoded if len(json.dumps(encoded)) <= LONGEST else ["h", digest(value)]


def digest(value: Any) -> Digest:
    """One name for all values that Python calls equal: 1, 1.0 and True are the same, sets and dictionaries unordered.

    >>> digest([1, {2, 3}]) == digest([1.0, {3, 2}]), digest([1]) == digest((1,))
    (True, False)
    """
    if isinstance(value, Digest):
        return value
    return Digest(hashlib.sha256(_text(value).encode("utf-8", "surrogatepass")).hexdigest())


def _text(value: Any) -> str:
    kind = type(value)
    if kind is int or kind is bool:
        return f"{value:x}"
    if kind is float:
        return f"{int(value):x}" if value.is_integer() else value.hex()
    if issubclass(kind, str):
        return json.dumps(str.__str__(value))
    if issubclass(kind, list):
        return f"[{','.join(map(_text, list.__iter__(value)))}]"
    if issubclass(kind, tuple):
        return f"({','.join(map(_text, tuple.__iter__(value)))})"
    if issubclass(kind, set | frozenset):
        iterate = set.__iter__ if issubclass(kind, set) else frozenset.__iter__
        return f"{{{','.join(sorted(map(_text, iterate(value))))}}}"
    if issubclass(kind, dict):
        return f"<{','.join(sorted(f'{_text(key)}:{_text(item)}' for key, item in dict.items(value)))}>"
    return json.dumps(encode(value))


def answer_calls() -> None:
    """Inside of the sandbox: define a program, and write what each call of it gives, one JSON line each.

    Standard input has {"program", "calls"}, a call being [expression, encoded arguments] or [expression]: with
    arguments the expression is what is called, and without it is the value. What the program itself prints goes to
    standard error.
    """
    order, out = json.load(sys.stdin), sys.stdout
    sys.stdout = sys.stderr
    names: dict[str, Any] = {"__name__": "program"}
    exec(compile(order["program"], "program.py", "exec"), names)
    for expression, *arguments in order["calls"]:
        try:
            value = eval(expression, names)
            said = ["value", written(value(*map(_thawed, decode(arguments[0]))) if arguments else value)]
        except Exception as error:
            said = ["raised", type(error).__name__]
        out.write(json.dumps(said) + "\n")
    out.flush()


def _thawed(value: Any) -> Any:
    """Sets as programs expect them, which is not frozen."""
    if isinstance(value, list):
        return [_thawed(item) for item in value]
    if isinstance(value, dict):
        return {key: _thawed(item) for key, item in value.items()}
    return set(value) if isinstance(value, frozenset) else value
