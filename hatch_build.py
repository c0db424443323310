"""The README as a package index shows it, where links to files of this repository lead nowhere: they become names."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURE = re.compile(r"^!\[[^\]]*\]\((?!https?:)[^)]*\)\n\n?", re.MULTILINE)
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)([^)#]+)[^)]*\)")
NOTE = "\nFiles named here, such as docs/engines.md, are in tropd's repository and in its source distribution.\n"


def without_relative_links(text: str) -> str:
    """Links to files as their names, without pictures from the repository.

    >>> without_relative_links("[engines](docs/engines.md), [LICENSE](LICENSE), [a page](https://a.example)")
    'engines (docs/engines.md), LICENSE, [a page](https://a.example)'
    """
    return LINK.sub(lambda m: m[1] if m[1] == m[2] else f"{m[1]} ({m[2]})", PICTURE.sub("", text))


class Readme(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": without_relative_links(text) + NOTE}
