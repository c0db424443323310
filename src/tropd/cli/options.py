"""Options of a command, spelled with underscores as the fields are, and with hyphens."""

import argparse
from typing import Any


def add_option(parser: argparse.ArgumentParser, name: str, help: str, **settings: Any) -> None:
    """An option of both spellings, `--max_prompts` and `--max-prompts`; `settings` are argparse's."""
    hyphenated = name.replace("_", "-")
    parser.add_argument(*dict.fromkeys((f"--{name}", f"--{hyphenated}")), help=help, **settings)
