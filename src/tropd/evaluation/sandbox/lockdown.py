"""A process locks itself down for good: limits, no privilege, no files, no system calls beyond a list.

Nothing here needs root, a namespace or an installed program, so it works inside containers, as any user.
"""

import ctypes
import os
import platform
import resource
import signal
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from .landlock import landlock_version, restrict_files
from .seccomp import MACHINES, NO_NEW_PRIVILEGES, install_filter

SET_PARENT_DEATH_SIGNAL, SET_DUMPABLE = 1, 4

CAPABILITY_VERSION = 0x20080522

STACK_BYTES = 64 << 20


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    # of processor time, of all its threads together; what ends an endless loop, whatever the load
    cpu_seconds: int = 10
    wall_seconds: float = 60.0  # on the clock; what ends a program that sleeps
    memory_bytes: int = 1 << 30  # of address space
    output_bytes: int = 1 << 20  # of standard output, and as much of standard error
    threads: int = 64  # at most, seen every `server.WATCH_SECONDS`


def why_not_here() -> str | None:
    """Why programs cannot be contained on this machine, as a sentence with the way out; `None` where they can."""
    out = "Grade code on a Linux machine, or exclude the code benchmarks."
    if platform.system() != "Linux":
        return f"the sandbox for generated programs needs the Linux kernel, and this is {platform.system()}. {out}"
    if platform.machine() not in MACHINES:
        known = " and ".join(MACHINES)
        return f"the sandbox supports {known}, and this machine is {platform.machine()}. {out}"
    if landlock_version(ctypes.CDLL(None, use_errno=True)) < 1:
        return (
            "this kernel has no Landlock (it needs Linux 5.13, and no container profile that disables it), so a "
            f"generated program could read your files. {out}"
        )
    return None


def lock_down(limits: Limits, readable: Sequence[str], listable: Sequence[str] = ()) -> None:
    """Confine this process; there is no way back, and it must have one thread.

    Raises:
        OSError: the kernel refuses a step; nothing may run then.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    os.setsid()
    _ask(libc.prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0), "to die with the parent")
    with open("/proc/self/oom_score_adj", "w") as stream:  # the first to go when memory is short
        stream.write("1000")
    _set_limits(limits)
    _ask(libc.prctl(SET_DUMPABLE, 0, 0, 0, 0), "to be closed to debuggers")
    _ask(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "to gain no privileges")
    restrict_files(libc, readable, listable)
    # Root without capabilities is a user whose files happen to be root's: its limits hold.
    header = ctypes.create_string_buffer(struct.pack("=Ii", CAPABILITY_VERSION, 0))
    nothing = ctypes.create_string_buffer(struct.pack("=6I", *[0] * 6))
    _ask(libc.capset(header, nothing), "to drop capabilities")
    install_filter(libc, MACHINES[platform.machine()])


def _ask(status: int, what: str) -> None:
    if status:
        raise OSError(ctypes.get_errno(), f"the kernel refuses {what}")


def _set_limits(limits: Limits) -> None:
    hard = {
        resource.RLIMIT_CPU: limits.cpu_seconds,
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_FSIZE: limits.output_bytes,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_STACK: STACK_BYTES,
    }
    for which, value in hard.items():
        allowed = resource.getrlimit(which)[1]
        reached = value if allowed == resource.RLIM_INFINITY else min(value, allowed)
        resource.setrlimit(which, (reached, reached))
