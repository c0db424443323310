"""Values that nobody means, and what is accepted as an answer to one: a sentence."""

import math
import re

from hypothesis import strategies as st

from tropd.training.guards.errors import TrainingStopped

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 3, 2**31, 2**63, 10**30, -(10**9)]),
    st.sampled_from([0.5, -0.5, 1e-9, 1e300, math.nan, math.inf, -math.inf]),
    st.sampled_from(["", " ", "x", "nan", "-1", "true", "latest", "{", "[", "a\0b", "\x1b[31mred\x07", "x" * 500]),
    st.text(max_size=8),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
"""What JSON and YAML can hold."""
PYTHON = JSON | st.sampled_from([b"x", object(), int, {1: 2}, {1}, 1j, (1,), [b"x"], {"a": object()}])
"""What Python can hand over beside that."""

RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
"""What would move a cursor or turn a line."""


def sentence_of(error: BaseException) -> str:
    """What an error says; anything but one of the documented kinds is raised again, for it is a defect."""
    if not isinstance(error, (ValueError, TrainingStopped)):
        raise error
    text = str(error)
    assert len(text) > 15, repr(text)
    return text


def says_one_of(error: BaseException, names) -> None:
    """Is one of the names a word of the error's sentence?"""
    text = sentence_of(error)
    assert set(re.findall(r"\w+", text)) & set(names), text


def begins_with(error: BaseException, start: str, raw: bool = True) -> None:
    """Does the error's sentence begin so? Not `raw`: and could it be printed as it is?"""
    text = sentence_of(error)
    assert raw or not RAW.search(text), repr(text)
    assert text.startswith(start), text


def is_sentence(printed: str) -> None:
    """What a command printed on standard error ends with one mistake, for people to read."""
    assert "error: " in printed, printed[-500:]
    said = printed.split("error: ", 1)[1]
    assert "Traceback" not in said and len(said.splitlines()) <= 16, said
    assert not RAW.search(printed), repr(said)
