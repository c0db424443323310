"""Runs programs that a model wrote in a sandbox: the grader's side."""

import json
import os
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from .lockdown import Limits, why_not_here

BOOT = (
    "import json, sys; given = json.loads(sys.argv[1]); sys.path.insert(0, given['root']); "
    "from tropd.evaluation.sandbox.server import main; main(**given)"
)

SYSTEM_FILES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo", "/dev/null", "/dev/urandom")

ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LANG": "C.UTF-8"}
"""All that a program sees of an environment; sets have one order in every run."""

PATIENCE_SECONDS = 60.0
"""Extra time beyond a program's wall clock in which the server must answer."""


class SandboxRefused(ValueError):
    """Programs cannot be contained on this machine, so none is run."""


@dataclass(frozen=True)
class Outcome:
    """What a program did, up to its limits.

    It `ended` by `exit` (by itself, or at a limit on memory or output), or was killed at its limit of `cpu`, `wall` or
    `threads`.
    """

    ended: str
    exit_code: int
    stdout: bytes
    stderr: bytes
    cpu_seconds: float
    wall_seconds: float

    @property
    def succeeded(self) -> bool:
        return self.ended == "exit" and self.exit_code == 0

    @property
    def last_words(self) -> str:
        """The last line on standard error, which names an exception; empty where there is none."""
        return (self.stderr.decode(errors="replace").strip().splitlines() or [""])[-1]


class Sandbox(AbstractContextManager["Sandbox"]):
    """A fork server that runs one program at a time, tested before its first.

    Raises:
        SandboxRefused: this machine cannot contain a program, or one of the self-test's got out.

    Use it as a context manager, from one thread; several threads take one each.

    >>> with Sandbox() as sandbox:
    ...     sandbox.run("print(int(input()) * 2)", b"21").stdout
    b'42\\n'
    """

    def __init__(
        self,
        packages: Sequence[str] = (),  # of this environment, that programs may import beside the standard library
        # modules, of ours or of those packages, that are imported once and not by each program; of `module:function`
        # the function is called once as well
        preload: Sequence[str] = (),
        readable: Sequence[str] = (),  # other files and folders that programs may read
        environment: Mapping[str, str] | None = None,  # variables that they see beside `ENVIRONMENT`
    ) -> None:
        from .self_test import check_contains

        why = why_not_here()
        if why is not None:
            raise SandboxRefused(why)
        self._packages, self._preload, self._readable = tuple(packages), tuple(preload), tuple(readable)
        self._environment = ENVIRONMENT | dict(environment or {})
        self._orders, self._server = self._start()
        try:
            check_contains(self)
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server; a program that still runs dies with it."""
        self._orders.close()
        if self._server.poll() is None:
            self._server.kill()
        self._server.wait()

    def run(self, program: str, stdin: bytes = b"", limits: Limits | None = None) -> Outcome:
        """Run `program` as `__main__`, contained.

        Raises:
            SandboxRefused: the lock-down failed, and the program was not run; or the server is gone.
        """
        limits = limits or Limits()
        files = [_memory_file(program.encode("utf-8", "surrogatepass")), _memory_file(stdin)]
        files += [_memory_file(b""), _memory_file(b"")]
        try:
            answer = self._order(limits, files)
            stdout, stderr = (_content(file, limits.output_bytes) for file in files[2:])
        finally:
            for file in files:
                os.close(file)
        if not answer.pop("locked"):
            raise SandboxRefused(f"a program could not be locked down, and was not run: {stderr.decode()[-400:]}")
        if answer["ended"] == "exit" and answer["exit_code"] == -9 and answer["cpu_seconds"] > limits.cpu_seconds - 0.5:
            answer["ended"] = "cpu"
        return Outcome(stdout=stdout, stderr=stderr, **answer)

    def _order(self, limits: Limits, files: list[int]) -> dict:
        try:
            self._orders.settimeout(limits.wall_seconds + PATIENCE_SECONDS)
            socket.send_fds(self._orders, [json.dumps(asdict(limits)).encode()], files)
            answer = self._orders.recv(4096)
        except OSError as error:
            raise SandboxRefused(f"the process that runs programs does not answer ({error}).") from error
        if not answer:
            raise SandboxRefused("the process that runs programs has ended: it was killed, or a program escaped.")
        return json.loads(answer)

    def _start(self) -> tuple[socket.socket, subprocess.Popen]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            server = subprocess.Popen(
                self._command(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        return ours, server

    def _command(self, descriptor: int, boot: str = BOOT) -> list[str]:
        places = [place for name in self._packages for place in _files_of(name)]
        libraries = {str(path) for place in places for path in place.parent.glob("*.libs")}
        standard = (sys.base_prefix, sysconfig.get_path("stdlib"))
        given = {
            "descriptor": descriptor,
            "root": str(Path(__file__).parents[3]),
            "readable": [*standard, *SYSTEM_FILES, *self._readable, *map(str, places), *libraries],
            "listable": sorted({str(place.parent) for place in places}),
            "preload": self._preload,
        }
        return [sys.executable, "-s", "-S", "-B", "-P", "-X", "utf8", "-c", boot, json.dumps(given)]


def _files_of(package: str) -> list[Path]:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f"packages has {package!r}, which is not installed here. Install it, or remove it.")
    return [Path(folder) for folder in spec.submodule_search_locations or [spec.origin]]


def _memory_file(content: bytes) -> int:
    file = os.memfd_create("tropd", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(file), "wb") as stream:
        stream.write(content)
    os.lseek(file, 0, os.SEEK_SET)
    return file


def _content(file: int, at_most: int) -> bytes:
    size = min(os.fstat(file).st_size, at_most)
    with os.fdopen(os.dup(file), "rb") as stream:
        stream.seek(0)
        return stream.read(size)
