"""`tropd generate`: the teacher's responses to prompts, where guidance takes its prefixes from."""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import Field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.folder import check_model_folder, check_weights, is_local
from ..shipped import locate_field
from ..teacher.served.address import is_served
from . import console, writers
from .options import add_option

if TYPE_CHECKING:
    from ..data import PromptData
    from ..engines.drawing import Writer
    from ..generation import ResponseFile, Summary
    from ..models.files import ModelFiles
    from ..run.tools import RunTools

HELP = "write teacher responses for a file of prompts"

DTYPES = ("auto", "bfloat16", "float16", "float32")

DESCRIPTION = """\
Write the teacher's response to every prompt, one JSON line each.

Guided methods (see `tropd methods`) start rollouts from the beginning of a teacher response. With responses in the
data set, the teacher need not write them again in every step of every run.

A line holds the prompt's own columns, teacher_response (token ids without the end of sequence; null if the teacher
wrote nothing), teacher_response_text (for human readers) and teacher_response_ended (false: truncated at
max_new_tokens). Text prompts are tokenised verbatim, messages go through the teacher's chat template, and a
teacher_prompt replaces the prompt. If the response is null the teacher writes one during training; under FSDP it
cannot, so remove these rows.

If it is killed, the same command resumes with the next batch, and the file ends up the same."""

EPILOG = """\
examples:
  tropd generate --teacher models/teacher --data prompts.jsonl --out responses.jsonl
  tropd generate --teacher http://127.0.0.1:8000/v1 --data prompts.jsonl --out responses.jsonl
  tropd generate --teacher models/math --rows_of math --data prompts.jsonl --out math.jsonl
  tropd generate --teacher models/teacher --data problems.jsonl --out responses.jsonl \\
      --columns.prompt question --chat --max_new_tokens 4096"""

RESERVED = ("add_generation_prompt", "conversation", "return_dict", "tokenize")
"""Arguments of `apply_chat_template` that decide what comes back, and are ours."""


def add_options(parser: argparse.ArgumentParser) -> None:
    option = partial(add_option, parser)

    option("teacher", "model folder of the teacher, its name on the Hub, or its server's address", metavar="DIR")
    option("data", "prompts: a file, a folder or a name that `tropd train` takes", required=True, metavar="FILE")
    option("out", "JSON lines file to write, or to resume", required=True, metavar="FILE", type=Path)
    option("max_new_tokens", "longest response (default: 512)", type=int, default=512, metavar="N")
    option("temperature", "of the teacher's softmax (default: 1.0)", type=float, default=1.0, metavar="T")
    option("responses_per_prompt", "how many (default: 1)", type=int, default=1, metavar="N")
    option("batch_size", "responses sampled together (default: 16; 256 with vllm)", type=int, metavar="N")
    option("seed", "the same seed writes the same file (default: 42)", type=int, default=42, metavar="N")
    add_data_options(option)
    option("max_prompts", "answer only the first N prompts", type=int, metavar="N")
    option("tools", "functions that the teacher may call, by dotted paths; writes episodes", nargs="+", metavar="PATH")
    option("environment", "class whose methods it may call, by a dotted path, or name=path for several", nargs="+",
           metavar="PATH")  # fmt: skip
    option("max_tool_result_tokens", "cut longer replies of tools, as training does (default: no cut)", type=int,
           metavar="N")  # fmt: skip
    option("rows_of", "answer only the rows whose teacher column has this name", metavar="NAME")
    option("dtype", "auto (as stored, the default), bfloat16, float16 or float32", default="auto", choices=DTYPES)
    option("engine", "what generates: hf (the default) or vllm", default="hf", choices=writers.HERE)
    for name, (default, help) in writers.VLLM.items():
        shown: dict[str, Any] = {"type": type(default), "metavar": "N"}
        option(name, help, default=default, **({"action": "store_true"} if default is False else shown))
    option("use_cpu", "compute on the CPU even if there is a GPU", action="store_true")
    option("trust_remote_code", "run the code that a model folder brings along", action="store_true")
    for field in served_fields():
        kind = {"int": int, "float": float}.get(str(getattr(field.type, "__name__", field.type)).split(" ")[0], str)
        shown = {"action": "store_true"} if field.default is False else {"type": kind, "metavar": "X"}
        option(field.name, field.metadata["help"], default=field.default, **shown)
    parser.set_defaults(takes_fields=True, overrides=[])


def add_data_options(option: Callable[..., None]) -> None:
    """How prompts are read."""
    option("columns", "our column names to the file's, as JSON; or --columns.prompt NAME", metavar="JSON")
    option("data_split", "split of a data set that has several (default: train)", default="train", metavar="NAME")
    option("chat", "wrap text prompts as a user's message, for the chat template", action="store_true")
    option("system_prompt", "a system message before every conversation", metavar="TEXT")
    option("chat_template_kwargs", "arguments of the chat template, as JSON", metavar="JSON")


def served_fields() -> list[Field]:
    """The fields of a configuration that are about a teacher behind a server."""
    from ..training.method_settings import SERVED, MethodSettings

    return [field for field in fields(MethodSettings) if field.name in SERVED]


def run(options: argparse.Namespace) -> int:
    columns = _columns(options)
    template_kwargs = options.found_template = _template_kwargs(options.chat_template_kwargs)
    if options.max_prompts is not None and options.max_prompts < 1:
        raise ValueError(f"max_prompts is {options.max_prompts}; use at least 1, or remove it to answer all prompts.")
    if options.teacher is None:
        raise ValueError("teacher is not set; name the model that answers: --teacher path/or/name")
    options.teacher = locate_field("teacher", options.teacher)
    options.data = locate_field("data", options.data)
    options.found_tools = _tools(options)
    if is_served(options.teacher):
        _check_served(options)
    else:
        check_model_folder(options.teacher, "teacher")
        writers.check(vars(options))
    file, teacher, served = _open(options, columns, template_kwargs)
    if file.done == file.total:
        console.say(f"{file.path} is already complete.")
        speed = None
    else:
        speed = _generate(options, file, teacher, served)
    from ..generation import summarise

    _report(summarise(file), file, speed)
    return 0


def found_tools(options: argparse.Namespace) -> "RunTools":
    """What a model may call, by `--tools` and `--environment`."""
    from ..run.tools import find_tools

    words = options.environment or []
    named = dict(word.split("=", 1) for word in words if "=" in word)
    if len(words) > 1 and len(named) < len(words):
        raise ValueError(
            f"environment is {' '.join(words)}; write one dotted path, or name=path of each of several: --environment "
            "shop=my_module.Shop store=my_module.Store."
        )
    return find_tools(options.tools or [], named or (words[0] if words else None))


def _tools(options: argparse.Namespace) -> "RunTools":
    found = found_tools(options)
    if found.are_there and is_served(options.teacher):
        raise ValueError(
            "teacher is behind a server, but with tools the teacher must run in this process. Give its folder."
        )
    if found.are_there and options.engine != "hf":
        raise ValueError(
            f"engine is {options.engine!r}, but with tools only Transformers can write episodes. Remove engine."
        )
    return found


def _check_served(options: argparse.Namespace) -> None:
    """Refuse what a server decides by itself, and numbers that no question can be asked with."""
    from ..training.method_settings import MethodSettings

    if options.dtype != "auto":
        raise ValueError(
            f"dtype is {options.dtype!r}, but the teacher is behind a server, which sets its own. Remove it."
        )
    if options.engine != "hf":
        raise ValueError(
            f"engine is {options.engine!r}, but the teacher is behind a server, which generates. Remove it."
        )
    writers.say_idle("server", vars(options))
    MethodSettings(**{field.name: getattr(options, field.name) for field in served_fields()}).check_ranges()


def _columns(options: argparse.Namespace) -> dict[str, str] | None:
    """The names of `--columns JSON`, then those of `--columns.ours theirs`; every other word is refused."""
    from ..run.configuration import read_overrides

    words = options.overrides
    if any(word.startswith("--teacher.") for word in words):
        raise ValueError(
            "`tropd generate` runs one teacher at a time. Run it once for each teacher, on its own rows: --teacher DIR "
            "--rows_of NAME --out NAME.jsonl; then train on all files: --data A.jsonl B.jsonl"
        )
    unknown = [word for word in words if word.startswith("--") and not word.startswith("--columns.")]
    unknown += [word for word in words[:1] if not word.startswith("--")]
    if unknown:
        raise ValueError(f"{unknown[0]} is not an option of `tropd generate`; see `tropd generate --help`.")
    columns = json_mapping("columns", options.columns, '{"prompt": "question"}') or {}
    for written in read_overrides(words).values():
        columns |= written.value
    wrong = next((name for name, theirs in columns.items() if not isinstance(theirs, str)), None)
    if wrong is not None:
        raise ValueError(
            f"columns.{wrong} is {columns[wrong]!r}; write the name of one column of the file: --columns.{wrong} NAME."
        )
    return columns or None


def _template_kwargs(text: str | None) -> dict[str, Any] | None:
    arguments = json_mapping("chat_template_kwargs", text, '{"enable_thinking": false}')
    taken = [name for name in RESERVED if name in (arguments or {})]
    if taken:
        raise ValueError(
            f"chat_template_kwargs sets {taken[0]}, which tropd sets itself: a prompt ends where the teacher's turn "
            "starts. Remove it."
        )
    return arguments


def json_mapping(name: str, text: str | None, example: str) -> dict[str, Any] | None:
    """The mapping that an option holds as JSON."""
    if text is None:
        return None
    try:
        mapping = json.loads(text)
    except json.JSONDecodeError:
        mapping = None
    if not isinstance(mapping, dict):
        raise ValueError(
            f"{name} is {text!r}; write a JSON object, in single quotes for the shell: --{name} '{example}'."
        )
    return mapping


def _open(
    options: argparse.Namespace, columns: dict[str, str] | None, template_kwargs: dict[str, Any] | None
) -> "tuple[ResponseFile, ModelFiles, Writer | None]":
    """Everything that can be refused before the teacher's weights are loaded; a teacher behind a server is found."""
    from ..generation import GenerationSettings, ResponseFile, check_fit, read_prompts
    from ..models.files import read_model_files
    from .quiet import quiet_libraries

    quiet_libraries()
    is_elsewhere = is_served(options.teacher) or not is_local(options.teacher)
    taken = ("max_new_tokens", "temperature", "responses_per_prompt", "seed", "dtype", "max_tool_result_tokens")
    settings = GenerationSettings(
        teacher=options.teacher if is_elsewhere else os.path.normpath(options.teacher),
        batch_size=writers.BATCH_SIZES[options.engine] if options.batch_size is None else options.batch_size,
        engine="server" if is_served(options.teacher) else options.engine,
        **{name: getattr(options, name) for name in taken},
    )
    data = read_data(options, columns)
    from ..run.tools import check_rows_of_tools

    check_rows_of_tools(options.found_tools, data)
    rows, places = _rows(data, options.rows_of)
    if template_kwargs and all(isinstance(row["prompt"], str) for row in rows):
        console.warn(
            "chat_template_kwargs has no effect: the prompts are text, and no chat template is applied to text."
        )
    served: Writer | None = None
    teacher: ModelFiles
    if is_served(options.teacher):
        from ..engines.server import ServerWriter
        from ..teacher.served.connect import connect

        options.teacher_chat_template = "teacher"
        connected = connect(options.teacher, options)
        teacher, served = connected.files(options.teacher), ServerWriter(connected.teacher, options.teacher)
    else:
        teacher = read_model_files(options.teacher, role="teacher", trust_remote_code=options.trust_remote_code)
    told = read_prompts(options.found_tools.told(rows), places, teacher.tokenizer, template_kwargs)
    prompts = replace(told, rows=rows)
    check_fit(prompts, settings, teacher)
    if served is None:
        check_weights(options.teacher, "teacher", options.trust_remote_code)
    return ResponseFile(options.out, prompts, settings), teacher, served


def read_data(options: argparse.Namespace, columns: dict[str, str] | None) -> "PromptData":
    """The prompts, and what there is to say about them."""
    from ..data import load_prompts

    data = load_prompts(
        options.data,
        columns=columns,
        split=options.data_split,
        chat=options.chat,
        system_prompt=options.system_prompt,
        limit=options.max_prompts,
    )
    for note in data.notes:
        console.say(note)
    return data


def _rows(data: "PromptData", teacher: str | None) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows to answer with their places: all, or those that name this teacher."""
    rows = list(data.dataset)
    if teacher is None:
        if rows and "teacher" in rows[0]:
            console.warn(
                "the data have a teacher column; this teacher answers all rows. Use --rows_of NAME for only its own."
            )
        return rows, list(data.places)
    mine = [number for number, row in enumerate(rows) if row.get("teacher") == teacher]
    if not mine:
        names = sorted({str(row["teacher"]) for row in rows if row.get("teacher") is not None})
        raise ValueError(
            f"rows_of is {teacher!r}, but no row has that name in a teacher column (there: {', '.join(names) or 'none'}"
            ")."
        )
    return [rows[number] for number in mine], [data.places[number] for number in mine]


def _generate(
    options: argparse.Namespace, file: "ResponseFile", teacher: "ModelFiles", served: "Writer | None"
) -> float:
    """Write what is missing; tokens per second."""
    from ..generation import generate

    resumed = f"; {file.done} of {file.total} responses are already there" if file.done else ""
    longest = max(map(len, file.prompts.contexts))
    writer = served or writers.begin(teacher, "teacher", vars(options), longest)
    try:
        console.say(f"{writers.described(options.teacher, writer)}{resumed}")
        started = time.monotonic()
        with console.progress("generate", file.total, "responses", file.done) as advance:
            tokens = generate(writer, teacher, file, advance, options.found_tools, options.found_template)
        return tokens / (time.monotonic() - started)
    finally:
        writer.close()


def _report(summary: "Summary", file: "ResponseFile", speed: float | None) -> None:
    count, limit = summary.responses, file.settings.max_new_tokens
    length = (summary.messages, "messages") if summary.messages else (summary.tokens, "tokens")
    lines = [
        f"responses    {count} to {len(file.prompts.rows)} prompts",
        f"mean length  {length[0] / count:.1f} {length[1]}",
        f"ended        {summary.ended / count:.1%}",
        f"cut          {1 - summary.ended / count:.1%} at max_new_tokens = {limit}",
    ]
    if summary.rewards:
        successes = sum(reward == 1 for reward in summary.rewards)
        lines.append(f"success      {successes / len(summary.rewards):.1%} of the episodes have the reward 1")
    lines += [] if speed is None else [f"speed        {speed:.0f} tokens/s"]
    lines += [
        f"written      {file.path}",
        "",
        f"next: tropd train --student DIR --teacher {file.settings.teacher} --data {file.path} --output_dir run",
    ]
    console.show(*lines)
    if summary.empty:
        console.warn(
            f"{summary.empty} of {count} responses are empty: the teacher ended at once. Their teacher_response is "
            "null, so in a guided run the teacher tries again. Remove these rows under FSDP, where it cannot, or if "
            "the teacher always ends at once."
        )
