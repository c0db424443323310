"""Text of others as it is shown: what would be obeyed or not be seen is spelled out, and what is long is cut.

Every layer may import it: it imports none.
"""

import unicodedata
from typing import Any


def visible(text: str) -> str:
    """Text in which no control character, direction of writing or half a character is left: they are spelled out.

    >>> visible("a\\x1b[2Jb\\u202ec")
    'a\\\\x1b[2Jb\\\\u202ec'
    """
    hidden = ("Cc", "Cf", "Cs")
    return "".join(one if one in "\n\t" or unicodedata.category(one) not in hidden else repr(one)[1:-1] for one in text)


def shorten(value: Any, width: int = 60) -> str:
    """The value as Python writes it, cut after `width` characters.

    >>> print(shorten([1, "a"]), shorten("x" * 100, 8))
    [1, 'a'] 'xxxxxxx…
    """
    shown = repr(value)
    return shown if len(shown) <= width else shown[:width] + "…"
