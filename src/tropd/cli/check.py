"""`tropd check`: do student and teacher fit, what can you expect, what will it cost?"""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import console
from .fields import add_configuration_arguments, fields_help

HELP = "do student and teacher fit, and what will it cost?"

DESCRIPTION = """\
Check a student, a teacher and prompts before training.

Compares the tokenizers id by id, special tokens, endings, chat templates, vocabulary sizes and context lengths; lets
both models score a few real prompts; says whether OPD would be safe, whether outliers would dominate its gradient, or
whether the pair cannot work, and which method and settings to use; estimates memory, time and disk.
Exit code 2 if training would refuse the pair, the data or the configuration. (It does not check whether
output_dir is in use.)
"""

EPILOG = """\
examples:
  tropd check --student small/ --teacher large/ --data prompts.jsonl
  tropd check --config recipe.yaml --steps 2      also takes two optimiser steps (optimiser state appears on the second)
  tropd check --config recipe.yaml --json pair.json

""" + fields_help()


def add_options(parser: argparse.ArgumentParser) -> None:
    add_configuration_arguments(parser)
    parser.add_argument("--steps", type=int, default=0, metavar="N", help="take N optimiser steps and throw them away")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings as JSON")


def run(options: argparse.Namespace) -> int:
    from ..run.configuration import resolve

    if options.steps < 0:
        raise ValueError(f"--steps is {options.steps}; use a number of optimiser steps, or remove it.")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise ValueError(f"--json is {str(options.json)!r}, but there is no folder {options.json.absolute().parent}.")
    configuration = resolve(options.config, options.overrides, output_dir=UNNAMED)

    from ..run.prepare import prepare
    from .preflight import show_data, show_findings
    from .quiet import quiet_libraries

    quiet_libraries()
    inputs = prepare(configuration, console.say)
    show_data(inputs)
    show_findings(inputs, everything=True)
    found = _measure(inputs, options.steps)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        console.say(f"written: {options.json}")
    return 0


UNNAMED = "(not named)"
"""Output directory of a check that has none."""


def _measure(inputs: Any, num_steps: int) -> dict[str, Any]:
    """Estimate costs, score prompts, take steps; everything is shown, and given back as plain data."""
    from ..run.trial import silent_trainer, take_steps, trial_inputs
    from .preflight import is_sharded, look_when_ready, show_plan, show_probe, show_time

    # Before the models are loaded: the estimate holds them too.
    plan = show_plan(inputs, disk=inputs.args.output_dir != UNNAMED)
    found: dict[str, Any] = {}

    def look() -> None:
        looked = show_probe(trainer, inputs)
        found.update(looked.found)
        if plan is not None and looked.times is not None:
            show_time(inputs, looked.times, looked.mean_length)

    with tempfile.TemporaryDirectory(prefix="tropd-check-") as folder:
        console.say("loading student and teacher")
        trainer = silent_trainer(trial_inputs(inputs, num_steps, folder))
        if is_sharded(trainer) and not num_steps:
            console.warn("the student is sharded only when training begins: without --steps 1 no prompts are scored.")
        else:
            look_when_ready(trainer, look)
        if num_steps:
            console.say(f"taking {num_steps} optimiser steps, which are discarded")
            steps = take_steps(trainer)
            show_steps(steps, plan)
            found["steps"] = [asdict(step) for step in steps]
    return found


def show_steps(steps: list[Any], plan: Any) -> None:
    """What each step took, beside the estimate; peak memory is of the process so far, loading included."""
    from ..planning.memory import human_bytes

    screen = console.out()
    screen.print("\n[bold]steps taken[/bold]")
    for number, step in enumerate(steps, start=1):
        screen.print(
            f"  step {number}: {step.seconds:.1f} s, peak memory {human_bytes(step.peak_bytes)}, loss {step.loss:.4f}"
        )
    if plan is not None:
        screen.print(f"  estimated: {human_bytes(plan.memory.total)}, including Python and its libraries")
