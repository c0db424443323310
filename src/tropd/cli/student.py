"""`tropd student`: a smaller student, made by taking layers out of a teacher."""

import argparse
from pathlib import Path

from ..models.folder import check_model_folder, check_weights
from ..shipped import locate_field
from . import console

NAME = "student"

DESCRIPTION = """\
Write a smaller student: the teacher with only some of its layers.

The student shares the teacher's tokenizer, embeddings and chat template, so the two agree on every token id, which is
what on-policy distillation needs. Keep the first and the last layers; which layers in between matter least differs from
model to model. Weights keep the dtype they are stored in."""

EPILOG = """\
examples:
  tropd student --teacher models/teacher --keep-layers 0,1,4 --out models/student
  tropd student --teacher models/teacher --keep-layers 0-11,20-23 --out models/student"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        NAME,
        help="make a smaller student by removing layers from a teacher",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--teacher", required=True, metavar="DIR", help="model folder of the teacher")
    parser.add_argument(
        "--keep_layers",
        "--keep-layers",
        required=True,
        metavar="LIST",
        help="layers to keep, counted from 0, ascending: numbers and ranges such as 0-3,6",
    )
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="folder to write; must not exist")
    parser.add_argument(
        "--trust_remote_code",
        "--trust-remote-code",
        action="store_true",
        help="run the code that a model folder brings along",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    options.teacher = locate_field("teacher", options.teacher)
    check_model_folder(options.teacher, "teacher")
    from ..models.pruning import parse_layers, write_student
    from .quiet import quiet_libraries

    quiet_libraries()
    keep = parse_layers(options.keep_layers)
    console.say(f"reading {options.teacher}")
    check_weights(options.teacher, "teacher", options.trust_remote_code)
    pruned = write_student(options.teacher, keep, options.out, trust_remote_code=options.trust_remote_code)
    before, after = pruned.parameters_before, pruned.parameters_after
    out = console.out()
    out.print(f"layers      {pruned.layers_before} -> {len(keep)}: kept {','.join(map(str, keep))}", markup=False)
    out.print(
        f"parameters  {before:,} -> {after:,} ({after / before:.1%} of the teacher), {pruned.dtype}", markup=False
    )
    out.print(f"written     {options.out}", markup=False)
    out.print(
        "\nnext: a model without some of its layers usually needs brief healing first (supervised fine-tuning, for "
        "instance\non the teacher's responses from `tropd generate`), since on-policy distillation learns little from "
        "a student\n"
        "that writes nonsense. Then look at the pair:\n"
        f"  tropd check --student {options.out} --teacher {options.teacher} --data prompts.jsonl",
        markup=False,
    )
    return 0
