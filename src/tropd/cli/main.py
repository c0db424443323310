"""`tropd`: the door to every command. A mistake gets a sentence and exit code 2; `--debug` shows where it came from."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from .. import __version__
from ..extras import missing_part
from ..suggestions import hint
from . import console

NAMES = (
    *("check", "train", "generate", "serve", "evaluate", "compare", "report", "show"),
    *("student", "plan", "methods", "recipes", "doctor", "export", "verl"),
)
COMMANDS = {name: importlib.import_module(f"{__package__}.{name}") for name in NAMES}
"""By name; each has `HELP`, `DESCRIPTION`, `EPILOG`, `run`, and `add_options` where it takes any."""

EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130

DESCRIPTION = """\
tropd distils a teacher language model into a student that learns from its own responses.

The student writes, the teacher scores every token, and the loss of each token depends on its region:
a reverse-KL policy gradient for trusted tokens, a top-k forward KL for outliers, likelihood for teacher prefixes.
"""

EPILOG = """\
From two models and a file of prompts to a distilled student:

  tropd check --student small/ --teacher large/ --data prompts.jsonl          do they fit? what will it cost?
  tropd generate --teacher large/ --data prompts.jsonl --out answered.jsonl   teacher responses, for guided methods
  tropd train --student small/ --teacher large/ --data answered.jsonl --output_dir run
  tropd report run                                                            the result, token by token

`tropd doctor` says what this machine can run.
The same from a file: `tropd train --config recipe.yaml`; `--field value` overrides a field.
`tropd methods` lists the methods, `tropd COMMAND --help` explains a command.
Several GPUs: `accelerate launch --config_file "$(tropd recipes --path accelerate/fsdp2_8gpu)" -m tropd train ...`.
Pages such as docs/engines.md, which messages name, are in tropd's repository and in its source distribution.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 2 a mistake explained in a sentence, 128 + n after signal n."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        return _run([word for word in words if word != "--debug"])
    except KeyboardInterrupt:
        console.say("interrupted; finished output stays on disk.")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        sentence = _sentence(error)
        if debug or sentence is None:
            raise
        console.fail(sentence)
        return getattr(error, "exit_code", EXIT_MISTAKE)


def _run(words: list[str]) -> int:
    parser = build_parser()
    command = next((word for word in words if not word.startswith("-")), None)
    if command is not None and command not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise ValueError(f"{command!r} is not a command of tropd{hint(command, COMMANDS)}. Commands: {known}.")
    if not words:
        parser.print_help()
        return 0
    empty = next((word for word in words if word.startswith("--") and word.endswith("=--")), None)
    if empty is not None:  # argparse would hand on an empty list
        raise ValueError(f"{empty[:-3]} has no value; type one after it.")
    options, rest = parser.parse_known_args(words)
    if rest and not options.takes_fields:
        raise ValueError(
            f"{rest[0]} is not an option of `tropd {options.command}`; see `tropd {options.command} --help`."
        )
    options.overrides = rest
    return options.run(options)


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options; importing and building it loads no torch."""
    parser = _Parser("tropd", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--version", action="version", version=f"tropd {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a mistake")
    parser.set_defaults(takes_fields=False)
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND", parser_class=_Parser)
    for name, module in COMMANDS.items():
        words = {"help": module.HELP, "description": module.DESCRIPTION, "epilog": module.EPILOG}
        command = commands.add_parser(name, **words, formatter_class=argparse.RawDescriptionHelpFormatter)
        command.set_defaults(run=module.run)
        if hasattr(module, "add_options"):
            module.add_options(command)
    return parser


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose mistakes are exceptions, and that guesses no abbreviations."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str):
        raise ValueError(f"{message}; see `{self.prog} --help`.")


def _sentence(error: Exception) -> str | None:
    """What to tell a person about `error`; `None` for a defect of ours, which needs its traceback."""
    from ..training.guards.errors import TrainingStopped

    if (sentence := missing_part(error)) is not None:
        return sentence
    if isinstance(error, TrainingStopped):
        return str(error)
    if isinstance(error, ValueError):
        return str(error) if _is_ours(error) else f"{error} (`--debug` shows where this comes from)"
    if isinstance(error, ImportError) or "to be installed" in str(error):
        return f"{error} Install it, or remove the setting that needs it (report_to, use_vllm, optim, …)."
    if type(error).__name__ == "OutOfMemoryError":
        return (
            f"out of GPU memory: {error}. Lower per_device_train_batch_size (and raise gradient_accumulation_steps), "
            "max_completion_length or teacher_batch_size; `tropd check` estimates what a configuration needs."
        )
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or 'the disk'}: {error.strerror}."
    return None


def _is_ours(error: BaseException) -> bool:
    """Was the error raised by a line of this package, whose sentences are meant to be read?"""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and str(frame.tb_frame.f_globals.get("__name__", "")).startswith("tropd.")
