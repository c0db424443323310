"""`tropd student`: a smaller student, made by taking layers out of a teacher."""

import argparse
from functools import partial
from pathlib import Path

from ..models.folder import check_model_folder, check_weights
from ..shipped import locate_field
from . import console
from .options import add_option

HELP = "make a smaller student by removing layers from a teacher"

DESCRIPTION = """\
Write a smaller student: the teacher with only some of its layers.

The student shares the teacher's tokenizer, embeddings and chat template, so the two agree on every token id, which is
what on-policy distillation needs. Keep the first and the last layers; which layers in between matter least differs from
model to model. Weights keep the dtype they are stored in."""

EPILOG = """\
examples:
  tropd student --teacher models/teacher --keep-layers 0,1,4 --out models/student
  tropd student --teacher models/teacher --keep-layers 0-11,20-23 --out models/student"""


def add_options(parser: argparse.ArgumentParser) -> None:
    option, layers = partial(add_option, parser), "layers to keep, from 0, ascending: numbers and ranges such as 0-3,6"
    option("teacher", "model folder of the teacher", required=True, metavar="DIR")
    option("keep_layers", layers, required=True, metavar="LIST")
    option("out", "folder to write; must not exist", required=True, metavar="DIR", type=Path)
    option("trust_remote_code", "run the code that a model folder brings along", action="store_true")


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
    console.show(
        f"layers      {pruned.layers_before} -> {len(keep)}: kept {','.join(map(str, keep))}",
        f"parameters  {before:,} -> {after:,} ({after / before:.1%} of the teacher), {pruned.dtype}",
        f"written     {options.out}",
        "\nnext: a model without some of its layers usually needs brief healing first (supervised fine-tuning, for "
        "instance\non the teacher's responses from `tropd generate`), since on-policy distillation learns little from "
        "a student\n"
        "that writes nonsense. Then look at the pair:\n"
        f"  tropd check --student {options.out} --teacher {options.teacher} --data prompts.jsonl",
    )
    return 0
