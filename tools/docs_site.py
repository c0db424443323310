"""Of the documentation's build: README is the first page, links out of docs/ are names, doctests are code.

MkDocs runs the two functions as a hook, mkdocstrings the class as an extension (mkdocs.yml).
"""

import re
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?!https?:|#)[^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Put README beside the pages, with its links as they are seen from there."""
    from mkdocs.structure.files import File

    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """What the site does not hold is named instead of linked."""
    folder = (ROOT / "docs" / page.file.src_uri).parent
    here = (ROOT / "docs").resolve()

    def named(link: re.Match[str]) -> str:
        target = (folder / link[2].split("#")[0]).resolve()
        if target.is_relative_to(here) and target.exists():
            return link[0]
        words, name = link[1], link[2].removeprefix("../")
        return words if name in words or f"`{name}`" == words else f"{words} (`{name}`)"

    return _LINK.sub(named, markdown)


class Doctests(griffe.Extension):
    """Fences the examples of docstrings, which stand there as plain doctests."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """See `griffe.Extension`."""
        if obj.docstring is not None:
            blocks = re.split(r"\n\s*\n", obj.docstring.value)
            fenced = (f"```pycon\n{each}\n```" if each.lstrip().startswith(">>>") else each for each in blocks)
            obj.docstring.value = "\n\n".join(fenced)
