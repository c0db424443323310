"""`tropd train`: distil a teacher into a student, from a file of fields."""

import argparse
import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from . import console
from .fields import add_configuration_arguments, fields_help

HELP = "distil a teacher into a student"

DESCRIPTION = """\
Distil a teacher into a student on the student's own responses.

Before training, the pair is checked as by `tropd check`; a pair that cannot work is refused.
The run's folder contains run.json, metrics.jsonl, rollouts/, preflight.json, checkpoints, the model, and at the
end report.html, a page about the run. `tropd report RUN --follow` serves that page while the run continues.
"""

EPILOG = """\
examples:
  tropd train --student small/ --teacher large/ --data prompts.jsonl --output_dir run
  tropd train --config recipe:lora_one_gpu --learning_rate 1e-5 --method fkl_outlier
  tropd train --config recipe.yaml --resume_from_checkpoint latest
  accelerate launch --config_file "$(tropd recipes --path accelerate/fsdp2_8gpu)" -m tropd train --config recipe.yaml

""" + fields_help()


def add_options(parser: argparse.ArgumentParser) -> None:
    add_configuration_arguments(parser)


def run(options: argparse.Namespace) -> int:
    from ..run.configuration import resolve
    from ..run.output import check_output_directory, check_same_run

    configuration = resolve(options.config, options.overrides)
    output_dir, resume = configuration.trainer["output_dir"], configuration.trainer.get("resume_from_checkpoint")
    checkpoint = check_output_directory(output_dir, resume)

    from ..run.prepare import prepare
    from ..teacher.served.address import is_served
    from ..training.checkpointing.checkpoints import steps_of
    from .preflight import check_costs, show_data, show_findings
    from .quiet import quiet_libraries

    quiet_libraries()
    inputs = prepare(configuration, console.say)
    show_data(inputs)
    show_findings(inputs)
    check_costs(inputs)
    if checkpoint is not None:
        if steps_of(checkpoint) >= inputs.args.max_steps > 0:
            return _finish(inputs.args, checkpoint)
        settings = inputs.configuration.settings
        # Which model a server has is told by its fingerprint, whatever its address is by now.
        teacher = None if any(map(is_served, settings.teachers.values())) else settings.teacher
        for change in check_same_run(output_dir, inputs.args, teacher):
            console.warn(change)
    with ExitStack() as stack:
        return _train(inputs, checkpoint, stack)


def _finish(args: Any, checkpoint: str) -> int:
    """A run whose steps are done: say so, and make the final model where a kill has left none."""
    from ..training.checkpointing.final_model import best_of, is_missing, make_from

    source = best_of(checkpoint) if args.load_best_model_at_end else checkpoint
    if args.save_final_model and is_missing(args.output_dir, source):
        made_from = make_from(source, args.output_dir)
        console.say(f"{args.output_dir} had no final model; it was written from {made_from}.")
    steps = f"{args.max_steps} step" + ("" if args.max_steps == 1 else "s")
    console.say(f"{args.output_dir} is complete ({steps}); raise max_steps to continue.")
    return 0


def _train(inputs: Any, checkpoint: str | None, stack: ExitStack) -> int:
    from transformers import PrinterCallback

    from ..report.run_page import PAGE
    from ..run.assemble import build_trainer
    from ..training.checkpointing.directory_lock import only_run_in
    from ..training.guards.errors import RolloutsCollapsed
    from .preflight import look_when_ready, save_found, show_probe
    from .progress import TrainingProgress
    from .report import write_page
    from .terminal_report import show_end

    if int(os.environ.get("RANK", "0")) == 0:
        stack.enter_context(only_run_in(inputs.args.output_dir))  # before two runs have loaded their models
    console.say("loading student and teacher")
    progress = TrainingProgress("train")
    trainer = build_trainer(inputs, [progress])
    trainer.remove_callback(PrinterCallback)  # the progress shows the same numbers
    found: dict[str, Any] = {}

    def look() -> None:
        found.update(show_probe(trainer, inputs).found)
        if trainer.is_world_process_zero():
            save_found(found, trainer)

    if checkpoint is None:
        look_when_ready(trainer, look)
    else:
        console.say(f"resuming from {checkpoint}")
        trainer.checkpointing.tells_changes = False  # told already, before the models were loaded
    started = time.monotonic()
    trainer.stops_at = (*trainer.stops_at, signal.SIGINT)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except RolloutsCollapsed:  # its checkpoint and logs are whole
        progress.close()
        if trainer.is_world_process_zero():
            write_page([Path(trainer.args.output_dir)], Path(trainer.args.output_dir) / PAGE)
        raise
    finally:
        progress.close()
    args = trainer.args
    if trainer.is_world_process_zero():
        show_end(
            trainer.state.log_history,
            args.output_dir,
            steps=trainer.state.global_step - progress.first_step,
            seconds=time.monotonic() - started,
            saved=args.save_final_model,
            before=found.get("measurement") or {},
        )
    trainer.close_engine()
    trainer.accelerator.end_training()  # the processes of a run leave together
    return 0
