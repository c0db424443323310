"""`tropd export --to verl`: prompts in the order of training, with teacher prefixes, as verl reads them."""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..objective.methods import Method, get_method
from ..shipped import locate_field
from ..verl.methods import verl_methods, why_not
from ..verl.rows import Order, Prompt, steps_of, training_rows, validation_rows
from . import console
from .generate import _columns, _template_kwargs, add_data_options, read_data
from .options import add_option

if TYPE_CHECKING:
    from ..data import PromptData
    from ..models.files import ModelFiles

HELP = "write the data of a verl run"

DESCRIPTION = """\
Write a Parquet file that verl trains on with a method of tropd.

Prompts must be messages: verl applies the student's chat template to them. Guided methods (tropd, tropd_mask,
tropd_clip, tropd_share) need a teacher_response in every row, as `tropd generate` writes it; each row holds the prefix
for the step in which it is used, so verl must read the file once and in order. A row's teacher column becomes verl's
data_source, by which it selects one of several teachers.

In verl the NLL of a prefix (guidance_beta) is not trained on: prefixes only determine where the student continues."""

EPILOG = """\
examples:
  tropd export --to verl --student models/student --data responses.jsonl --out train.parquet \\
      --method tropd --batch_size 128 --epochs 1 --max_response_length 4096
  tropd export --to verl --student models/student --data test.jsonl --out val.parquet --validation"""


def add_options(parser: argparse.ArgumentParser) -> None:
    option = partial(add_option, parser)

    option("to", "the program to write for: verl", required=True, choices=("verl",))
    option("student", "model folder of the student, or its name on the Hub", required=True, metavar="DIR")
    option("data", "prompts: a file, a folder or a name that `tropd train` takes", required=True, metavar="FILE")
    option("out", "Parquet file to write", required=True, metavar="FILE", type=Path)
    option("method", "whose schedule decides the prefixes (default: tropd)", default="tropd", metavar="NAME")
    option("guidance_schedule", "cosine, linear, constant or none (default: the method's)", metavar="NAME")
    option("guidance_length", "cap or share (default: the method's)", metavar="NAME")
    option("guidance_min_tail", "tokens always left to the student (default: 1)", type=int, default=1, metavar="N")
    option("batch_size", "prompts of a step, verl's data.train_batch_size", type=int, metavar="N")
    option("epochs", "passes over the prompts (default: 1)", type=float, default=1.0, metavar="X")
    option("max_prompt_length", "verl's data.max_prompt_length (default: 1024)", type=int, default=1024, metavar="N")
    option("max_response_length", "verl's data.max_response_length", type=int, metavar="N")
    option("answer_column", "column for verl's reward_model.ground_truth", metavar="NAME")
    option("validation", "write rows for data.val_files: each prompt once, no prefixes", action="store_true")
    option("seed", "seed of the order (default: 42)", type=int, default=42, metavar="N")
    add_data_options(option)
    option("max_prompts", "export only the first N prompts", type=int, metavar="N")
    option("trust_remote_code", "run the code that a model folder brings along", action="store_true")
    parser.set_defaults(takes_fields=True, overrides=[])


def run(options: argparse.Namespace) -> int:
    from ..models.files import read_model_files
    from .quiet import quiet_libraries

    method = export_method(options)
    if options.out.suffix != ".parquet":
        raise ValueError(
            f"out is {str(options.out)!r}; verl selects the format by the file name: it must end in .parquet."
        )
    options.student = locate_field("student", options.student)
    options.data = locate_field("data", options.data)
    columns, template = _columns(options), _template_kwargs(options.chat_template_kwargs) or {}
    quiet_libraries()
    data = read_data(options, columns)
    student = read_model_files(options.student, role="student", trust_remote_code=options.trust_remote_code)
    prompts = list(_prompts(data, student, method if not options.validation else None, options, template))
    order = None if options.validation else _order(options, len(prompts))
    rows = list(validation_rows(prompts) if order is None else training_rows(prompts, method, order))
    write_parquet(rows, options.out)
    _report(options, method, order, rows)
    return 0


def export_method(options: argparse.Namespace) -> Method:
    """The method of the options, as verl can run it."""
    method = get_method(
        options.method, guidance_schedule=options.guidance_schedule, guidance_length=options.guidance_length
    )
    reason = why_not(method)
    if reason is not None:
        raise ValueError(
            f"method is {options.method!r}, which cannot run in verl: {reason}. Choose another: "
            f"{', '.join(verl_methods())}."
        )
    return method


def _order(options: argparse.Namespace, prompts: int) -> Order:
    for name in ("batch_size", "max_response_length"):
        if getattr(options, name) is None:
            raise ValueError(f"{name} is not set; give the value that the verl run will use: --{name} N.")
    if options.batch_size < 1:
        raise ValueError(f"batch_size is {options.batch_size}; it must be at least 1.")
    steps = steps_of(prompts, options.batch_size, options.epochs)
    if steps < 1:
        raise ValueError(
            f"{options.epochs:g} epochs of {prompts} prompts do not fill one step of {options.batch_size}. Lower "
            "batch_size, or raise epochs."
        )
    return Order(options.batch_size, steps, options.max_response_length, options.guidance_min_tail, options.seed)


def _prompts(
    data: "PromptData",
    student: "ModelFiles",
    method: Method | None,
    options: argparse.Namespace,
    template: dict[str, Any],
) -> Iterator[Prompt]:
    """The rows as verl's messages, with the ids of the teacher's responses where `method` is guided."""
    from ..rollout.guidance import response_ids
    from ..run.context import tokenize
    from ..teacher.context import tools_of

    for row, place in zip(data.dataset, data.places, strict=True):
        messages = row["prompt"]
        if isinstance(messages, str):
            raise ValueError(
                f"{place}: the prompt is text, but verl applies the chat template to every prompt. Add --chat to make "
                "it a user's message."
            )
        if tools_of(row):
            raise ValueError(f"{place}: the prompt has tools, which are not exported. Remove that column.")
        ids = tokenize(student.tokenizer, [messages], template)[0]
        if len(ids) > options.max_prompt_length:
            raise ValueError(
                f"{place}: the prompt has {len(ids)} tokens, but max_prompt_length is {options.max_prompt_length}. "
                "verl would skip the row, and shift all later rows to different steps. Raise max_prompt_length, or "
                "remove the row."
            )
        response: list[int] = []
        if method is not None and method.guided:
            written = row.get("teacher_response")
            if written is None:
                raise ValueError(
                    f"{place}: there is no teacher_response, but method {method.name!r} starts rollouts from it. Write "
                    "responses with `tropd generate`, or set --guidance_schedule none."
                )
            response = response_ids(written, messages, ids, student.tokenizer, student.eos_ids, **template)
        answer = "" if options.answer_column is None else str(row[options.answer_column])
        yield Prompt(list(messages), response, str(row.get("teacher") or "tropd"), answer)


def write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    """The rows as one Parquet file, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ..verl.rows import PREFIX, STEP

    table = pa.Table.from_pylist(rows)
    extra = pa.struct([("index", pa.int64()), (STEP, pa.int64()), (PREFIX, pa.list_(pa.int64()))])
    place = table.schema.get_field_index("extra_info")
    column = pa.array([row["extra_info"] for row in rows], type=extra)
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.set_column(place, "extra_info", column), partial)
    partial.replace(path)


def _report(options: argparse.Namespace, method: Method, order: Order | None, rows: list[dict[str, Any]]) -> None:
    lines = [f"rows         {len(rows)}"]
    if order is not None:
        lengths = [len(row["extra_info"]["tropd_prefix_ids"]) for row in rows]
        lines.append(f"steps        {order.steps} of {order.batch} prompts")
        if method.guided:
            first, last = (sum(part) / order.batch for part in (lengths[: order.batch], lengths[-order.batch :]))
            lines.append(f"prefixes     {first:.1f} tokens on average in the first step, {last:.1f} in the last")
            lines.append("             their NLL (guidance_beta) is not trained on in verl: β = 0")
    lines.append(f"written      {options.out}")
    if order is not None:
        lines += [
            "",
            "verl must read the file once, in this order:",
            f"  data.train_files={options.out} data.train_batch_size={order.batch} data.shuffle=False \\",
            "  data.filter_overlong_prompts=False trainer.total_epochs=1 \\",
            f"  data.max_prompt_length={options.max_prompt_length} "
            f"data.max_response_length={order.max_response_length}",
        ]
        if method.guided:
            lines[-1] += " \\"
            lines.append("  actor_rollout_ref.rollout.agent.default_agent_loop=tropd_prefix")
    console.show(*lines)
