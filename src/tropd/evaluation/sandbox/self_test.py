"""Programs that try to escape, run before the first program of a model: if one succeeds, nothing is graded."""

import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .lockdown import Limits

if TYPE_CHECKING:
    from .client import Sandbox

QUICK = Limits(cpu_seconds=2, wall_seconds=20.0, memory_bytes=256 << 20, output_bytes=1 << 16)

SECRET = "the content of a file"

ORDINARY = """
import sys, threading
total = []
thread = threading.Thread(target=lambda: total.append(sum(map(int, sys.stdin.read().split()))))
thread.start(); thread.join()
print(total[0])
"""

PROBES = {
    "start another process": """
import ctypes
libc = ctypes.CDLL(None)
child = libc.fork()
if child == 0: libc._exit(0)
if child > 0: print("got out")
""",
    "run a command": """
import os
try: os.execv("/bin/sh", ["sh", "-c", "echo got out"])
except OSError: pass
""",
    "read a file": "print('got out' if open({folder!r} + '/secret').read() else '')",
    "write a file": "open({folder!r} + '/planted', 'w').write('got out'); print('got out')",
    "remove a file": "import os; os.unlink({folder!r} + '/secret'); print('got out')",
    "reach the network": """
import socket
socket.create_connection(("127.0.0.1", {port}), 2)
print("got out")
""",
    "end another process": """
import os
os.kill({bystander}, 9)
print("got out")
""",
    "signal another process through a pipe": """
import fcntl, os
read, write = os.pipe()
fcntl.fcntl(read, fcntl.F_SETOWN, {bystander})
print("got out")
""",
    "change the limits of another process": """
import resource
resource.prlimit({bystander}, resource.RLIMIT_CPU, (0, 0))
print("got out")
""",
    "take more memory": """
import mmap
block = mmap.mmap(-1, 1 << 29)
print("got out")
""",
    "write without end": """
import os
written = 0
while written < 1 << 20: written += os.write(1, b"." * 4096)
os.write(1, b"got out")
print("got out")
""",
}


def check_contains(sandbox: "Sandbox") -> None:
    """Run an ordinary program, which must work, and all that try to get out, which must not.

    Raises:
        SandboxRefused: with what does not hold here.
    """
    from .client import SandboxRefused

    answer = sandbox.run(ORDINARY, b"1 2 3", QUICK)
    if answer.stdout != b"6\n":
        raise SandboxRefused(
            f"an ordinary program does not run in the sandbox here ({answer.ended}, exit code {answer.exit_code}: "
            f"{answer.stderr.decode(errors='replace')[-300:]}), so no code is graded on this machine."
        )
    with _things_to_harm() as (folder, port, bystander):
        for what, text in PROBES.items():
            program = text.replace("{folder!r}", repr(str(folder))).replace("{port}", str(port))
            outcome = sandbox.run(program.replace("{bystander}", str(bystander.pid)), b"", QUICK)
            harmed = (folder / "planted").exists() or not (folder / "secret").exists() or bystander.poll() is not None
            if b"got out" in outcome.stdout or harmed or len(outcome.stdout) > QUICK.output_bytes:
                raise SandboxRefused(
                    f"a contained program was able to {what} on this machine, so no generated program is run. Grade "
                    "code on another machine, or exclude the code benchmarks."
                )


@contextmanager
def _things_to_harm() -> Iterator[tuple[Path, int, subprocess.Popen]]:
    """A folder with a file, a port that is listened to, and a process that does nothing."""
    with (
        tempfile.TemporaryDirectory(prefix="tropd-self-test-") as folder,
        socket.create_server(("127.0.0.1", 0)) as listener,
        subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"]) as bystander,
    ):
        Path(folder, "secret").write_text(SECRET)
        try:
            yield Path(folder), listener.getsockname()[1], bystander
        finally:
            bystander.kill()
