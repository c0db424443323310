"""The fork server: a small process that forks for each program, so that one costs milliseconds and not an interpreter.

Started by `client`, it reads orders from a socket: the limits as JSON, and four open files, which are the program and
its standard streams. The child locks itself down before it compiles a line of the program. The server waits, ends what
takes too long, and answers with what happened; it never reads what a program wrote.
"""

import atexit
import builtins
import importlib
import json
import os
import select
import signal
import site
import socket
import sys
import threading
import time
import traceback
import types
from typing import Any

from .lockdown import Limits, lock_down

WATCH_SECONDS = 0.02
"""How often a program that is not done is looked at."""

PRELOADED = (
    *("abc", "array", "bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum"),
    *("fractions", "functools", "hashlib", "heapq", "inspect", "io", "itertools", "math", "operator", "queue"),
    *("random", "re", "statistics", "string", "textwrap", "typing", "unicodedata"),
)
"""What programs import most, read once and not in each child."""

LOCKED = b"locked"


def main(descriptor: int, root: str, readable: list[str], listable: list[str], preload: list[str]) -> None:
    """Serve until the other end is closed.

    Args:
        descriptor: of the socket that orders come through.
        root: the folder of this package, which programs cannot import from.
        readable: what programs may read.
        listable: folders to import packages from, of which programs may read those that are readable.
        preload: modules to import before the first program; of `module:function` the function is called as well.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the grader's, who closes the socket
    # The interpreter was started without `site`, which reads the user's files; programs expect `exit` all the same.
    site.setquit()
    site.setcopyright()
    site.sethelper()
    sys.path[:] = [*sys.path, *listable]
    for name in (*PRELOADED, *preload):
        module, _, function = name.partition(":")
        imported = importlib.import_module(module)
        if function:
            getattr(imported, function)()
    sys.path.remove(root)
    orders = socket.socket(fileno=descriptor)
    while True:
        message, files, _, _ = socket.recv_fds(orders, 4096, 4)
        if not message:
            return
        limits = Limits(**json.loads(message))
        answer = _run(limits, files, orders, readable, listable)
        for file in files:
            os.close(file)
        orders.send(json.dumps(answer).encode())


def _run(limits: Limits, files: list[int], orders: socket.socket, readable: list[str], listable: list[str]) -> Any:
    told, tells = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_the_program(limits, files, tells, readable, listable)
    os.close(tells)
    ended = _watch(child, limits, orders, started)
    _, status, usage = os.wait4(child, 0)
    locked = os.read(told, len(LOCKED)) == LOCKED
    os.close(told)
    return {
        "locked": locked,
        "ended": ended,
        "exit_code": os.waitstatus_to_exitcode(status),
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "wall_seconds": time.monotonic() - started,
    }


def _watch(child: int, limits: Limits, orders: socket.socket, started: float) -> str:
    """Wait for the child, and kill it where it overstays: `exit`, `wall` or `threads`."""
    process = os.pidfd_open(child)
    poller = select.poll()
    poller.register(process, select.POLLIN)
    poller.register(orders, 0)  # tells only that the other end is gone
    try:
        while not (seen := dict(poller.poll(WATCH_SECONDS * 1000))):
            overstays = _overstays(child, limits, started)
            if overstays:
                os.kill(child, signal.SIGKILL)
                return overstays
        if process not in seen:
            os.kill(child, signal.SIGKILL)
            sys.exit("the grader is gone")
        return "exit"
    finally:
        os.close(process)


def _overstays(child: int, limits: Limits, started: float) -> str | None:
    if time.monotonic() - started > limits.wall_seconds:
        return "wall"
    with open(f"/proc/{child}/stat", "rb") as stream:
        threads = int(stream.read().rpartition(b")")[2].split()[17])
    return "threads" if threads > limits.threads else None


def _be_the_program(limits: Limits, files: list[int], tells: int, readable: list[str], listable: list[str]) -> None:
    """In the child: never returns."""
    status = 1
    try:
        source, tells = _take_streams(files, tells)
        lock_down(limits, readable, listable)
        os.write(tells, LOCKED)
        os.close(tells)
        status = _execute(source)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _take_streams(files: list[int], tells: int) -> tuple[bytes, int]:
    """Make the open files standard streams, and close all else; the program's text, and where 3 now tells."""
    program, *streams = files
    source = os.pread(program, os.fstat(program).st_size, 0)
    kept = [os.dup(file) for file in (*streams, tells)]  # above the numbers they go to
    for number, file in enumerate(kept):
        os.dup2(file, number)
    os.closerange(4, 1 << 16)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  # open for good
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, "utf-8", "backslashreplace", closefd=False)  # noqa: SIM115
    return source, 3


def _execute(source: bytes) -> int:
    """Run the text as `__main__`, to its last thread and exit function; the exit code."""
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"], sys.argv = module, ["program.py"]
    status = 0
    try:
        exec(compile(source, "program.py", "exec"), module.__dict__)
    except SystemExit as end:
        status = _exit_code(end.code)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are not daemons
    atexit._run_exitfuncs()
    sys.stdout.flush()
    return status


def _exit_code(code: Any) -> int:
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1
