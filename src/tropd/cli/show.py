"""`tropd show`: logged rollouts in the terminal, each token by its region."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import console

HELP = "logged rollouts in the terminal, each token by its region"

DESCRIPTION = """\
Print logged rollouts of a run with the region of every token. Regions are shown by marks as well as by colour:

  «teacher prefix»  trusted  ⟦outlier r⟧  ~left out~

r = log π_T − log π_S. Without --step it shows the last logged step. `tropd report` shows the same in a browser, with
probabilities and the teacher's likeliest tokens.
"""

EPILOG = """\
examples:
  tropd show run
  tropd show run --step 11 --limit 1
  tropd show run --all --region outlier --below -5     rollouts of any step with an outlier of r ≤ −5
  tropd show run --all --text "add the columns"
"""

REGIONS = {"trusted": "trust", "outlier": "outlier", "prefix": "guidance", "left-out": "left out"}
STYLES = {
    "author": "bold",
    "tool": "dim",
    "trust": "",
    "outlier": "bold red",
    "guidance": "dim italic",
    "left out": "dim strike",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="the output_dir of a run")
    parser.add_argument("--step", type=int, metavar="N", help="a logged step (default: the last)")
    parser.add_argument("--all", action="store_true", help="every logged step")
    parser.add_argument("--text", metavar="WORDS", help="rollouts whose prompt or response contains this")
    parser.add_argument("--region", choices=sorted(REGIONS), help="rollouts that have a token of this region")
    parser.add_argument("--below", type=float, metavar="R", help="rollouts that have such a token with r at most R")
    parser.add_argument("--limit", type=int, default=4, metavar="N", help="at most this many rollouts (default 4)")


def run(options: argparse.Namespace) -> int:
    from ..report.run_folder import read_run

    if options.limit < 1:
        raise ValueError(f"--limit is {options.limit}; at least one rollout is shown. Remove it to show 4.")
    if options.all and options.step is not None:
        raise ValueError("--all and --step exclude each other. Remove one of them.")
    found = read_run(options.folder)
    rollouts = list(found.rollouts())
    if not rollouts:
        raise ValueError(
            f"{options.folder} has no logged rollouts yet; rollout_log_steps sets how often they are logged."
        )
    steps = sorted({record["step"] for record in rollouts})
    if options.step is not None and options.step not in steps:
        raise ValueError(f"--step is {options.step}, which was not logged. Logged steps: {_listed(steps)}.")
    wanted = set(steps) if options.all else {steps[-1] if options.step is None else options.step}
    shown = [record for record in rollouts if record["step"] in wanted and _matches(record, options)]
    for record in shown[: options.limit]:
        _print(record)
    rest, plural = len(shown) - options.limit, "" if len(wanted) == 1 else "s"
    console.say(
        f"{min(len(shown), options.limit)} of {len(shown)} rollouts that match, of step{plural} "
        + _listed(sorted(wanted))
        + (f"; --limit {len(shown)} shows all" if rest > 0 else "")
    )
    return 0


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) if len(steps) <= 12 else f"{steps[0]}, {steps[1]}, …, {steps[-1]}"


def _matches(record: Mapping[str, Any], options: argparse.Namespace) -> bool:
    if options.text is not None and options.text.lower() not in (record["prompt"] + record["response"]).lower():
        return False
    if options.region is None and options.below is None:
        return True
    return any(
        (options.region is None or token["region"] == REGIONS[options.region])
        and (options.below is None or (token["log_ratio"] is not None and token["log_ratio"] <= options.below))
        for token in record["tokens"]
    )


def _print(record: Mapping[str, Any]) -> None:
    from rich.text import Text

    from ..training.logging.marked import mark_response, record_pieces

    whose = f", teacher {record['teacher']}" if "teacher" in record else ""
    ended = "ended" if record["ended_by"] is not None else "cut at the limit"
    state = ended if record["included"] else "excluded from the loss"
    ratios = [token["log_ratio"] for token in record["tokens"] if token["log_ratio"] is not None]
    lowest = f", lowest r {min(ratios):.2f}" if ratios else ""
    screen = console.out()
    screen.print(f"step {record['step']}, row {record['row']}{whose}: {state}{lowest}", markup=False, style="bold")
    screen.print(record["prompt"].rstrip("\n"), markup=False, style="dim")
    text = Text()
    for piece, region in record_pieces(record):
        text.append(piece, STYLES.get(region, ""))
    screen.print(text if record["tokens"] else mark_response(record), markup=False)
    screen.print()
