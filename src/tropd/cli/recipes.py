"""`tropd recipes`: the configurations that come with the package."""

import argparse
import sys
from pathlib import Path

from ..shipped import locate, recipe_names
from . import console

HELP = "the configurations that come with tropd"

DESCRIPTION = """\
List the recipes that come with tropd, or print one.

`recipe:NAME` can be used wherever a configuration or a plan is expected: there is no need to copy the file.
"""

EPILOG = """\
examples:
  tropd recipes                                     the list, with what each shows
  tropd recipes lora_one_gpu > mine.yaml            a copy to change
  tropd recipes README.md                           what each costs, and what to expect of it
  tropd train --config recipe:lora_one_gpu --student small/ --teacher large/ --data prompts.jsonl
  tropd compare recipe:proving_ground/demo --out runs/demo
  accelerate launch --config_file "$(tropd recipes --path accelerate/fsdp2_8gpu)" -m tropd train --config mine.yaml
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", metavar="NAME", help="a recipe to print, as the list names it")
    parser.add_argument("--path", action="store_true", help="print its path instead of its contents")


def run(options: argparse.Namespace) -> int:
    if options.recipe is None:
        if options.path:
            raise ValueError("--path needs a recipe: `tropd recipes --path lora_one_gpu`.")
        width = max(map(len, recipe_names()))
        console.out().print("\n".join(f"{name:<{width}}  {_shows(name)}".rstrip() for name in recipe_names()))
        return 0
    try:
        path = Path(locate(f"recipe:{options.recipe.removeprefix('recipe:')}"))
    except ValueError as error:
        raise ValueError(f"the recipe is {error}") from error
    sys.stdout.write(f"{path}\n" if options.path else path.read_text(encoding="utf-8"))
    return 0


def _shows(name: str) -> str:
    with Path(locate(f"recipe:{name}")).open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()
