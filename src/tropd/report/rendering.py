"""The templates of the page. What is put into them is escaped; what would be obeyed or not be seen is spelled out."""

import base64
import hashlib
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..visible import visible
from .axes import label

CSS, SCRIPT = (
    (files(__package__) / "templates" / name).read_text(encoding="utf-8") for name in ("style.css", "inspector.js")
)


def _spelled_out(value: Any) -> Any:
    """Text of others made visible; what is markup already stays."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


TEMPLATES = Environment(
    loader=PackageLoader(__package__),
    autoescape=True,
    finalize=_spelled_out,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {
    "px": "{:.1f}".format,
    "points": lambda points: " ".join(f"{x:.1f},{y:.1f}" for x, y in points),
    "label": label,
}


def digest(text: str) -> str:
    """As a Content-Security-Policy names a style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def draw(chart: str, **values: Any) -> str:
    """A macro of `charts.html` with its values: markup, which a page takes as it is."""
    return getattr(TEMPLATES.get_template("charts.html").module, chart)(**values)  # type: ignore[no-any-return]
