"""What `tropd check` and `tropd train` show before anything is trained."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..preflight.probe import is_sharded
from . import console

WITHOUT_PREFLIGHT = "(To skip this check, for instance to test a setup with untrained models: preflight_prompts: 0.)"


def show_data(inputs: Any) -> None:
    """How many prompts, duplicates, and overlap with evaluation files."""
    from ..data import find_duplicates, find_overlap

    settings = inputs.configuration.settings
    console.say(f"{len(inputs.data):,} prompts from {inputs.data.source}")
    for note in inputs.data.notes:
        console.warn(note)
    duplicates = find_duplicates(inputs.data)
    (console.warn if duplicates.groups else console.say)(duplicates.sentence())
    for overlap in find_overlap(inputs.data, settings.overlap_with):
        (console.warn if overlap.rows else console.say)(overlap.sentence())


def show_findings(inputs: Any, everything: bool = False) -> None:
    """What the two models' files say about each other; only what deserves attention, unless `everything` is wanted."""
    from ..preflight.screen import render_findings

    found = inputs.findings if everything else [found for found in inputs.findings if found.level != "ok"]
    if found:
        console.out().print(render_findings(found))


def _plan(inputs: Any) -> Any:
    """Memory and disk of the run, or `None`, with a warning, if the cost model does not know the architecture."""
    from ..run.costs import NoEstimate, plan_of

    try:
        return plan_of(inputs)
    except NoEstimate as unknown:
        console.warn(str(unknown))
        return None


def show_plan(inputs: Any, disk: bool) -> Any:
    """Print and give the plan, or `None`; a disk that is too small is refused where `disk` says so."""
    from ..planning import available_memory, render
    from ..run.costs import check_room

    plan = _plan(inputs)
    if plan is not None:
        console.show(*render(plan, available_memory(inputs.args.use_cpu)))
        if disk:
            check_room(inputs, plan)
    return plan


def check_costs(inputs: Any) -> None:
    """Before the models are loaded, which the plan counts: warn of too little memory, refuse too small a disk."""
    from ..planning import available_memory
    from ..run.costs import check_room

    plan = _plan(inputs)
    if plan is None:
        return
    fit = plan.memory.fits(available_memory(inputs.args.use_cpu))
    if not fit.fits:
        console.warn(fit.sentence)
    check_room(inputs, plan)


def show_time(inputs: Any, times: Any, mean_length: float) -> None:
    """Seconds of a step at the measured speeds and length of a response."""
    from ..planning.render import time_lines
    from ..run.costs import plan_of, time_of

    plan = plan_of(inputs, response_tokens=max(1.0, mean_length))
    console.show(f"responses of {mean_length:.0f} tokens, the measured mean:", *time_lines(plan, time_of(plan, times)))


class AtStart(TrainerCallback):
    """Calls `look` on every process when training begins."""

    def __init__(self, look: Callable[[], None]):
        self.look = look

    def on_train_begin(self, args, state, control, **kwargs):
        self.look()


def look_when_ready(trainer: Any, look: Callable[[], None]) -> None:
    """Call `look` now, or when training begins where the student is sharded only then."""
    if is_sharded(trainer):
        trainer.add_callback(AtStart(look))
    else:
        look()


@dataclass(frozen=True)
class Looked:
    """What the models said to a few prompts, as plain data; `times` is `None` where nothing was asked."""

    found: dict[str, Any]
    times: Any = None
    mean_length: float = 0.0


def show_probe(trainer: Any, inputs: Any) -> Looked:
    """Let the models score a few prompts, each teacher some of its own, and say what to expect."""
    from ..preflight.screen import as_dict

    num_prompts = inputs.configuration.settings.preflight_prompts
    if num_prompts == 0:
        return Looked(as_dict(inputs.findings))
    looks = [look for name in inputs.teachers if (look := _look_at(trainer, inputs, name, num_prompts)) is not None]
    times = [look.times for look in looks]
    rollouts = [sum(time.rows_per_rank) * time.num_processes for time in times]
    mean_length = sum(look.mean_length * count for look, count in zip(looks, rollouts, strict=True)) / sum(rollouts)
    if None in inputs.teachers:
        return looks[0]
    each = {name: part for look in looks for name, part in look.found.items()}
    return Looked(as_dict(inputs.findings) | {"teachers": each}, sum(times[1:], times[0]), mean_length)


def _look_at(trainer: Any, inputs: Any, name: str | None, num_prompts: int) -> Looked | None:
    """Student and one teacher, on rows of its own; `None` where it has none."""
    from ..preflight.measure import measure
    from ..preflight.probe import probe
    from ..preflight.screen import as_dict, render_measurement, render_verdict
    from ..preflight.verdict import judge
    from ..run.sources import first_rows, response_lengths

    rows = first_rows(inputs.data, name, num_prompts)
    if not rows:
        return None
    who = "both models" if name is None else f"student and teacher {name!r}"
    console.say(f"{who} score {len(rows)} prompts")
    probed = probe(trainer, rows)
    measurement = measure(probed)
    trainer.expect_endings(1 - measurement.truncated_share)
    verdict = judge(
        measurement,
        trainer.method,
        max_completion_length=inputs.args.max_completion_length,
        teacher_response_lengths=response_lengths(inputs.data, inputs.student.tokenizer, name),
        tokenizer=inputs.student.tokenizer,
    )
    console.out().print(render_measurement(measurement, inputs.student.tokenizer))
    if not verdict.works:
        whose = "" if name is None else f"teacher {name!r}: "
        raise ValueError(f"{whose}{' '.join(verdict.sentences)} {WITHOUT_PREFLIGHT}")
    console.out().print(render_verdict(verdict))
    found = as_dict(inputs.findings, measurement, verdict)
    if name is not None:
        found = {name: {part: value for part, value in found.items() if part != "findings"}}
    return Looked(found, probed.times, measurement.mean_length)


def save_found(found: dict[str, Any], trainer: Any) -> None:
    """Write `preflight.json` into the run's directory; an earlier run's is set aside."""
    from ..atomic_files import write_whole
    from ..training.checkpointing.earlier_run import set_aside

    directory = Path(trainer.args.output_dir)
    set_aside(directory, ("preflight.json",))
    write_whole(directory / "preflight.json", json.dumps(found, indent=2) + "\n")
    trainer.has_preflight = True
