"""`tropd serve`: a teacher that trainers in other processes ask for its scores."""

import argparse
import ipaddress
import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

from ..models.folder import check_model_folder, check_weights, is_local
from ..shipped import locate_field
from . import console
from .generate import DTYPES
from .options import add_option

if TYPE_CHECKING:
    from ..models.files import ModelFiles

HELP = "serve a teacher to trainers in other processes"

DESCRIPTION = """\
Serve a teacher: trainers use it with `--teacher tropd://HOST:PORT`.

It runs the passes that a teacher in the trainer's process would run, and returns numbers: log-probability and
entropy of each token, and the top-k only for tokens that need it. So it scores at any temperature, several runs can
share it, and it keeps running when a run ends. On the same kind of machine the numbers are those of a teacher in the
process, bit for bit.

The key that each request must carry is read from the environment (TROPD_TEACHER_API_KEY). Without a key only this
machine is served. SIGTERM or Ctrl-C ends it, after the answers in progress."""

EPILOG = """\
examples:
  tropd serve --teacher models/teacher
  tropd train --student models/student --teacher tropd://127.0.0.1:8001 --data prompts.jsonl --output_dir run"""


def add_options(parser: argparse.ArgumentParser) -> None:
    option = partial(add_option, parser)

    option("teacher", "model folder of the teacher, or its name on the Hub", required=True, metavar="DIR")
    option("host", "address to listen on (default: 127.0.0.1, this machine only)", default="127.0.0.1")
    option("port", "default: 8001; 0 takes any free port", type=int, default=8001, metavar="N")
    option("name", "name of the model (default: its folder or name)", metavar="NAME")
    option("api_key_env", "environment variable with the key (default: TROPD_TEACHER_API_KEY)", metavar="VARIABLE")
    option("max_tokens", "limit of a request, over all rows (default: 262144)", type=int, default=2**18, metavar="N")
    option("dtype", "auto (as stored, the default), bfloat16, float16 or float32", default="auto", choices=DTYPES)
    option("use_cpu", "compute on the CPU even if there is a GPU", action="store_true")
    option("trust_remote_code", "run the code that a model folder brings along", action="store_true")


def run(options: argparse.Namespace) -> int:
    import starlette  # noqa: F401, of the extra as the next: whoever lacks it is told before anything is loaded
    import uvicorn  # noqa: F401

    from ..serving.server import bind, serve

    key = _key(options)
    if options.max_tokens < 1:
        raise ValueError(f"max_tokens is {options.max_tokens}; use at least 1.")
    options.teacher = locate_field("teacher", options.teacher)
    check_model_folder(options.teacher, "teacher")
    at = bind(options.host, options.port)  # nobody is let in before the model is there
    try:
        app = _load(options, key, at)
        serve(app, at)
    finally:
        at.close()
    console.say("ended.")
    return 0


def _key(options: argparse.Namespace) -> str | None:
    """The key, without which no other machine is served."""
    from ..teacher.served.address import TEACHER, read_key

    key = read_key(options.api_key_env, field="api_key_env")
    if key is None and not _is_loopback(options.host):
        raise ValueError(
            f"host is {options.host!r}, which allows requests from other machines, but there is no key. Export one "
            f"({TEACHER.key_variable}=…) here and for the trainers, or listen on 127.0.0.1 and use a tunnel."
        )
    return key


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _load(options: argparse.Namespace, key: str | None, at: socket.socket) -> Any:
    from ..engines.transformers import TransformersWriter
    from ..models.files import read_model_files
    from ..serving.app import Served, make_app
    from ..teacher.local import LocalTeacher
    from .quiet import quiet_libraries

    quiet_libraries()
    files: ModelFiles = read_model_files(options.teacher, role="teacher", trust_remote_code=options.trust_remote_code)
    check_weights(options.teacher, "teacher", options.trust_remote_code)
    console.say(f"loading {options.teacher}")
    writer = TransformersWriter.load(
        files, "teacher", dtype=options.dtype, use_cpu=options.use_cpu, trust_remote_code=options.trust_remote_code
    )
    model, name = writer.model, options.name or options.teacher
    folder = os.path.abspath(options.teacher) if is_local(options.teacher) else options.teacher
    served = Served(LocalTeacher(model), files.tokenizer, name, folder, files.eos_ids, key, options.max_tokens)
    host = f"[{options.host}]" if ":" in options.host else options.host
    console.say(
        f"{options.teacher} on {model.device} in {str(model.dtype).removeprefix('torch.')}, "
        f"{'with a key' if key else 'without a key'}: --teacher tropd://{host}:{at.getsockname()[1]}"
    )
    return make_app(served)
