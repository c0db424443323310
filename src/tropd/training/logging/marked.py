"""A logged rollout as one text in which regions can be distinguished without colour. Nothing heavy is imported."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, zip_longest
from typing import Any

MARKS = {"trust": ("", ""), "guidance": ("«", "»"), "left out": ("~", "~"), "outlier": ("⟦", "⟧")}
"""The marks before and after the tokens of a region; those of an outlier enclose its r, too."""

LEGEND = "«teacher prefix»  trusted  ⟦outlier r⟧  ~left out~"


def marked_pieces(tokens: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Texts with their regions: consecutive tokens of one region are joined; each outlier is alone, with its r.

    >>> tokens = [{"text": "a", "region": "trust"}, {"text": "b", "region": "trust"}]
    >>> list(marked_pieces([*tokens, {"text": " c", "region": "outlier", "log_ratio": -5.25}]))
    [('ab', 'trust'), ('⟦ c −5.2⟧', 'outlier')]
    """
    for region, group in groupby(tokens, key=lambda token: token["region"]):
        before, behind = MARKS.get(region, MARKS["left out"])
        if region == "outlier":
            for token in group:
                log_ratio = f"{token['log_ratio']:+.1f}".replace("-", "−")
                yield f"{before}{token['text']} {log_ratio}{behind}", region
        else:
            yield f"{before}{''.join(token['text'] for token in group)}{behind}", region


def record_pieces(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The pieces of a logged rollout; of an episode, the author before each part, and a tool's words in their place.

    >>> episode = [{"author": "student", "at": 0, "text": "a"}, {"author": "tool", "at": 1, "text": "7"}]
    >>> list(record_pieces({"tokens": [{"text": "a", "region": "trust"}], "episode": episode}))
    [('\\n[student] ', 'author'), ('a', 'trust'), ('\\n[tool] ', 'author'), ('7', 'tool')]
    """
    parts = record.get("episode", ())
    if not parts:
        yield from marked_pieces(record["tokens"])
    for part, behind in zip_longest(parts, parts[1:]):
        yield f"\n[{part['author']}] ", "author"
        if part["author"] == "tool":
            yield part["text"], "tool"
        else:
            yield from marked_pieces(record["tokens"][part["at"] : behind and behind["at"]])


def mark_response(record: Mapping[str, Any]) -> str:
    """A logged rollout's response with its regions; of one that was left out, the response as it is between `~`."""
    if not record["tokens"]:
        return f"~{record['response']}~"
    return "".join(text for text, _ in record_pieces(record))
