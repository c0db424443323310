"""What would be obeyed or not be seen, spelled out. Every layer may import it: it imports none."""

import unicodedata


def visible(text: str) -> str:
    """Text in which no control character, direction of writing or half a character is left: they are spelled out.

    >>> visible("a\\x1b[2Jb\\u202ec")
    'a\\\\x1b[2Jb\\\\u202ec'
    """
    hidden = ("Cc", "Cf", "Cs")
    return "".join(one if one in "\n\t" or unicodedata.category(one) not in hidden else repr(one)[1:-1] for one in text)
