"""Texts for comparison: letters and digits, with and without the instruction template around them."""

import re
from collections.abc import Sequence
from math import ceil
from os.path import commonprefix  # of any texts, not only of paths
from typing import Any

TEMPLATE_SHARE = 0.9
"""Text that this share of a file's different prompts begin (or end) with is its template."""

_LAST_WORD = re.compile(r"\w+$")


class _LettersAndDigits(dict[int, int | None]):
    """A table for `str.translate` that fills itself: letters and digits stay, the rest goes."""

    def __missing__(self, code: int) -> int | None:
        self[code] = code if chr(code).isalnum() else None
        return self[code]


_LETTERS_AND_DIGITS = _LettersAndDigits()


def asked(prompt: Any) -> str:
    """The text of a prompt that is compared: itself, or what the user says in its messages."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message.get("content") or "" for message in prompt if message["role"] == "user")


def letters_and_digits(text: str) -> str:
    """Lowercase letters and digits of any script; the rest of the text goes.

    >>> letters_and_digits("Let $x_1 = 2$. 求 ÉTÉ!")
    'letx12求été'
    """
    return text.lower().translate(_LETTERS_AND_DIGITS)


def without_space(text: str) -> str:
    """The text but for its white space: two that agree here are the same word for word."""
    return "".join(text.split())


def template(texts: Sequence[str], share: float = TEMPLATE_SHARE) -> tuple[str, str]:
    """What comes before and after the problem in prompts that wrap it in one instruction.

    It is the longest text that `share` of the different texts begin with, and likewise at their end, so that a few rows
    of another kind do not hide it. It is cut back to whole words, as problems may begin with the same letters.

    >>> template(["Solve: 1+2. Think!", "Solve: 12+2. Think!", "Solve: 7-2. Think!"])
    ('Solve: ', '. Think!')
    """
    different = sorted(set(texts))
    if len(different) < 2:
        return "", ""
    before = _shared_start(different, share)
    after = _shared_start(sorted(text[::-1] for text in different), share)
    return before, after[::-1]


def _shared_start(ordered: Sequence[str], share: float) -> str:
    """The longest common start of this many texts. The texts are sorted, so those with a common start are adjacent."""
    together = max(2, ceil(share * len(ordered)))
    starts = [commonprefix([ordered[i], ordered[i + together - 1]]) for i in range(len(ordered) - together + 1)]  # noqa: RUF071
    return _LAST_WORD.sub("", max(starts, key=len))


def wordings(texts: Sequence[str]) -> list[tuple[str, ...]]:
    """For each text of a file: itself and, where a template surrounds it, what remains inside.

    Both are kept, since problems may begin alike (`Write a function to …`) without that being a template.
    """
    before, after = template(texts)
    inside = [text.removeprefix(before).removesuffix(after) for text in texts]
    return [(text, rest) if rest != text else (text,) for text, rest in zip(texts, inside, strict=True)]
