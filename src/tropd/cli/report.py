"""`tropd report`: one page of a run, or of several side by side, with every logged token."""

import argparse
from pathlib import Path

from . import console

HELP = "one page of a run: curves, evaluations, every logged token"

DESCRIPTION = """\
Write one self-contained page about a run of `tropd train` or `TrOPDTrainer`, finished or not, or about several runs
side by side: results, curves, evaluations, regions over time, and an inspector of every logged token with its region,
r, both models' probabilities, the teacher's likeliest tokens, and the loss it was trained with.

The page needs no other file and no network. `tropd train` writes it when it ends. With --follow it is served to this
machine only, while the run continues, and updates itself.
"""

EPILOG = """\
examples:
  tropd report run                          writes run/report.html
  tropd report run_a run_b --out both.html
  tropd report run --follow                 serves it at http://127.0.0.1:8765/ until Ctrl-C
"""

SECONDS = 10
"""After which a page that follows a run asks for itself again."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the output_dir of a run")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write (default: report.html in the run)")
    parser.add_argument("--follow", action="store_true", help="serve the page while the run continues")
    parser.add_argument("--port", type=int, default=8765, metavar="N", help="port for --follow (default 8765; 0: any)")


def run(options: argparse.Namespace) -> int:
    if options.follow:
        return _follow(options)
    from ..report.run_page import PAGE

    out = options.out or (options.runs[0] / PAGE if len(options.runs) == 1 else Path("tropd-report.html"))
    if not out.absolute().parent.is_dir() and options.out is not None:
        raise ValueError(f"--out is {str(out)!r}, but there is no folder {out.absolute().parent}.")
    write_page(options.runs, out)
    console.say(f"written: {out} ({out.stat().st_size / 1e3:,.0f} kB); open it in a browser")
    return 0


def write_page(folders: list[Path], out: Path) -> None:
    """Write the page of these runs, whole or not at all."""
    from ..atomic_files import write_whole
    from ..report.run_page import run_page

    write_whole(out, run_page(folders))


def _follow(options: argparse.Namespace) -> int:
    from ..report.follow import HOST, serve

    if options.out is not None:
        raise ValueError("--out and --follow exclude each other: --follow writes no file. Remove one of them.")
    for folder in options.runs:
        if not folder.is_dir():
            raise ValueError(f"{str(folder)!r} is not a folder. Name the output_dir of a run that has begun.")
    try:
        server = serve(options.runs, options.port, SECONDS)
    except (OSError, OverflowError) as error:
        raise ValueError(f"--port is {options.port}, which is not available ({error}). Choose another port.") from error
    with server:
        console.say(f"the page is at http://{HOST}:{server.server_port}/ until Ctrl-C, only for this machine")
        server.serve_forever()
    return 0
