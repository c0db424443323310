"""What was probably meant by a name that is not known. Every layer may import it: it imports none."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like `name`, or `None` where none is like it."""
    return next(iter(difflib.get_close_matches(str(name), list(known), n=1)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest known name, or nothing.

    >>> did_you_mean("promt", ["prompt", "answer"])
    " Did you mean 'prompt'?"
    """
    near = nearest(name, known)
    return "" if near is None else f" Did you mean {near!r}?"


def hint(name: str, known: Iterable[str]) -> str:
    """The same in brackets, for the middle of a sentence.

    >>> hint("topd", ["opd", "tropd"])
    " (did you mean 'tropd'?)"
    """
    near = nearest(name, known)
    return "" if near is None else f" (did you mean {near!r}?)"
