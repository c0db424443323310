"""`tropd plan`: memory, time and disk of a run on GPUs that are not here, so that one knows before renting."""

import argparse
from functools import partial
from typing import Any

from . import console
from .fields import add_configuration_arguments
from .options import add_option

HELP = "memory, time and disk on GPUs that you do not have"

DESCRIPTION = """\
Estimate memory, time and disk of a run on GPUs that you do not have, from its configuration alone.

The models may be folders or names; names that `known` lists need no files. One optimiser step has the same number of
sequences on any number of GPUs. Times are predictions from data-sheet peaks and assumed utilisations; no GPU was
measured (docs/planning.md). On a machine that has the GPU, `tropd check --steps 2` measures.
"""

EPILOG = """\
examples:
  tropd plan --config recipe:paper/setting1_math --gpus 1 8 64 --sequences_per_step 512 --response_tokens 5000
  tropd plan --student Llama-3.1-8B --teacher Llama-3.1-70B --gpus 8 64 --gpu h200 --max_steps 200

fields of the configuration are set as in `tropd train`
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_configuration_arguments(parser)
    option = partial(add_option, parser)
    option("gpus", "how many (1 8 64)", type=int, nargs="+", default=[1, 8, 64], metavar="N")
    option("gpu", "h100, h200, a100 or rtx4090 (h100)", default="h100")
    rows = "rollouts per step, over all GPUs (default: those of one process of the configuration)"
    option("sequences_per_step", rows, type=int, metavar="N")
    option("prompt_tokens", "mean length of a prompt (200)", type=int, default=200, metavar="N")
    option("response_tokens", "mean length of a response (max_completion_length)", type=int, metavar="N")


def run(options: argparse.Namespace) -> int:
    from ..planning import HARDWARE, plan_arguments
    from ..planning.fleet import plan_fleets
    from ..planning.known import config_by_name, shape_by_name
    from ..run.adapter import own_bases
    from ..run.configuration import resolve
    from ..run.costs import adapter_parameters
    from ..teacher.per_teacher_settings import args_of, check_settings, distinct_names
    from .quiet import quiet_libraries

    if options.gpu not in HARDWARE:
        raise ValueError(f"--gpu is {options.gpu!r}; known: {', '.join(HARDWARE)}.")
    quiet_libraries()
    configuration = resolve(options.config, options.overrides, output_dir="out", data="prompts.jsonl")
    args = configuration.changed(**ON_PAPER).training_arguments()
    settings = configuration.settings
    check_settings(args, settings.teachers)
    shapes = {name: shape_by_name(settings.teachers[name]) for name in distinct_names(args, settings.teachers)}
    teachers = plan_arguments(args, shapes, own_bases(settings, args))
    largest = teachers["teacher_name"]
    del teachers["args"]  # each fleet has its own
    rows = options.sequences_per_step or args.per_device_train_batch_size * args.gradient_accumulation_steps
    fleets = plan_fleets(
        lambda **changes: args_of(
            configuration.changed(**ON_PAPER, **changes).training_arguments(), largest, settings.teachers
        ),
        student=shape_by_name(settings.student),
        hardware=HARDWARE[options.gpu],
        gpus=options.gpus,
        sequences_per_step=rows,
        micro_rows=args.per_device_train_batch_size,
        num_generations=args.num_generations,
        prompt_tokens=options.prompt_tokens,
        response_tokens=options.response_tokens,
        teacher_writes=False,
        **teachers,
        lora_parameters=adapter_parameters(config_by_name(settings.student), settings) if settings.use_peft else None,
        max_steps=args.max_steps if args.max_steps > 0 else 1,
    )
    _show(fleets, args, options.gpu, rows)
    return 0


ON_PAPER = {"use_cpu": True, "steps_per_generation": None, "generation_batch_size": None}
"""What keeps the configuration from asking for this machine's GPU, and from fixing a split of the step."""


def _show(fleets: list[Any], args: Any, gpu: str, rows: int) -> None:
    from rich.table import Table

    from ..planning.memory import human_bytes

    first = fleets[0].plan
    screen = console.out()
    models = [("student", first.setup.student), ("teacher", first.setup.teacher)]
    for role, shape in (*models, *(("teacher", held.shape) for held in first.setup.beside)):
        size = f"{shape.parameters / 1e9:.2f}B parameters, vocabulary {shape.vocab_size:,}"
        screen.print(f"{role}  {f'{shape.name}, behind a server' if shape.is_elsewhere else size}", markup=False)
    work = first.setup.work
    screen.print(
        f"step     {rows} sequences of {work.prompt_tokens:.0f} + {work.response_tokens:.0f} tokens, at most "
        f"{work.longest_response} in a response; {first.max_steps} steps of {args.method}"
    )
    if first.setup.vllm_share:
        screen.print(
            f"vLLM     takes {first.setup.vllm_share:.0%} of each GPU in addition (vllm_gpu_memory_utilization)"
        )
    for note in first.setup.notes if first.setup.beside else ():
        screen.print(f"note     {note}", markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("GPUs", "sharded", "batch", "memory", "stage", "fits", "step", "run", "GPU h"):
        table.add_column(
            column, justify="right" if column in ("GPUs", "step", "run", "GPU h") else "left", no_wrap=True
        )
    for fleet in fleets:
        table.add_row(
            str(fleet.gpus),
            "FSDP2" if fleet.sharded else "no",
            f"{fleet.micro_rows} x {fleet.accumulation}",
            human_bytes(fleet.plan.memory.total),
            fleet.plan.memory.peak.name,
            "[green]yes[/green]" if fleet.fits else "[red]no[/red]",
            f"{fleet.step_seconds:,.0f} s",
            f"{fleet.run_hours:,.1f} h",
            f"{fleet.gpu_hours:,.0f}",
        )
    screen.print(table, soft_wrap=False)
    screen.print(f"disk     {human_bytes(first.disk.total)} in output_dir")
    screen.print(f"Predicted for {gpu} from peak numbers and assumed utilisations; nothing here was measured on a GPU.")
