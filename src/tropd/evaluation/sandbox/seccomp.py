"""A seccomp filter: the system calls a contained program may make, as a program of the kernel's packet filter.

The filter is installed by the process itself, needs no privilege, and cannot be taken off again. It holds for every
thread that the process starts, and the program may start threads but no processes.
"""

import ctypes
import os
import struct
from dataclasses import dataclass

from .system_calls import AARCH64, ALWAYS, X86_64

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, constant."""

LOAD, JUMP_EQUAL, JUMP_GREATER_EQUAL, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06

ALLOW: Instruction = (RETURN, 0, 0, 0x7FFF0000)
KILL: Instruction = (RETURN, 0, 0, 0x80000000)
REFUSE: Instruction = (RETURN, 0, 0, 0x00050000 | 1)  # EPERM
ABSENT: Instruction = (RETURN, 0, 0, 0x00050000 | 38)  # ENOSYS: a C library falls back on an older call

NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
"""Offsets into the kernel's `struct seccomp_data`."""

X32 = 0x40000000
"""Numbers from here on are of x86_64's other interface."""

THREAD_FLAGS = (0x003D0F00, 0x007D0F00)
"""What `pthread_create` asks `clone` for, in glibc and in musl; a new process asks for less."""

READING_FCNTL = (0, 1, 2, 3, 1030)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC. F_SETOWN with F_SETSIG would send any signal to any process,
F_SETLEASE and F_SETLK would hold up those who use a file."""

SET_FLAGS, ASYNC = 4, 0o20000
"""F_SETFL, and the flag of it that has signals sent."""

TERMINAL_ATTRIBUTES = 0x5401
"""TCGETS, by which Python asks whether a stream is a terminal."""

SET_NAME = 15
"""PR_SET_NAME, with which a thread is named."""

SET_FILTER, FILTER_MODE, NO_NEW_PRIVILEGES = 22, 2, 38


@dataclass(frozen=True)
class Machine:
    """What the filter must know of a processor's interface."""

    architecture: int  # its number in `seccomp_data`
    numbers: dict[str, int]  # of the system calls
    reading_flags: int  # bits that an `open` which only reads may carry


_READING = 0o2000000 | 0o400 | 0o4000  # O_CLOEXEC, O_NOCTTY, O_NONBLOCK

MACHINES = {
    "x86_64": Machine(0xC000003E, X86_64, _READING | 0o200000 | 0o400000 | 0o100000),
    "aarch64": Machine(0xC00000B7, AARCH64, _READING | 0o40000 | 0o100000 | 0o400000),
}
"""O_DIRECTORY, O_NOFOLLOW and O_LARGEFILE have other bits on each."""


def filter_program(machine: Machine, pid: int) -> list[Instruction]:
    """The whole filter, for a process that may signal `pid` alone, which is itself."""
    numbers = machine.numbers
    program = [(LOAD, 0, 0, ARCHITECTURE), (JUMP_EQUAL, 1, 0, machine.architecture), KILL, (LOAD, 0, 0, NUMBER)]
    program += [(JUMP_GREATER_EQUAL, 0, 1, X32), KILL]
    rules = {name: [ALLOW] for name in ALWAYS}
    rules |= {name: [ABSENT] for name in ("clone3", "openat2")}  # their flags lie behind a pointer
    rules |= {
        "open": _without_bits(1, ~machine.reading_flags & 0xFFFFFFFF),
        "openat": _without_bits(2, ~machine.reading_flags & 0xFFFFFFFF),
        "clone": _one_of(0, THREAD_FLAGS),
        "fcntl": _only_the_calling_process(),
        "ioctl": _one_of(1, (TERMINAL_ATTRIBUTES,)),
        "prctl": _one_of(0, (SET_NAME,)),
        "tgkill": _one_of(0, (pid,)),
        "prlimit64": _reading_own_limits(),
    }
    for name, block in rules.items():
        if name in numbers:
            program += [(JUMP_EQUAL, 0, len(block), numbers[name]), *block]
    return [*program, REFUSE]


def _argument(number: int, high: bool = False) -> Instruction:
    """Load 32 of an argument's 64 bits; both machines are little-endian."""
    return (LOAD, 0, 0, ARGUMENTS + 8 * number + 4 * high)


def _without_bits(argument: int, mask: int) -> list[Instruction]:
    return [_argument(argument), (JUMP_ANY_BIT, 0, 1, mask), REFUSE, ALLOW]


def _one_of(argument: int, values: tuple[int, ...]) -> list[Instruction]:
    tests = [(JUMP_EQUAL, len(values) - place, 0, value) for place, value in enumerate(values)]
    return [_argument(argument), *tests, REFUSE, ALLOW]


def _only_the_calling_process() -> list[Instruction]:
    """`fcntl` on descriptors alone: its flags may be set, but for the one that has signals sent."""
    flags = _without_bits(2, ASYNC)
    return [_argument(1), (JUMP_EQUAL, 0, len(flags), SET_FLAGS), *flags, *_one_of(1, READING_FCNTL)]


def _reading_own_limits() -> list[Instruction]:
    """`prlimit64(0, …, NULL, …)`: a limit of another process of the same user, set to nothing, would end it."""
    parts = (_argument(0), _argument(2), _argument(2, high=True))
    return [step for load in parts for step in (load, (JUMP_EQUAL, 1, 0, 0), REFUSE)] + [ALLOW]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install_filter(libc: ctypes.CDLL, machine: Machine) -> None:
    """Confine this process and all its threads to come; there must be no other thread yet.

    Raises:
        OSError: the kernel has no seccomp filters.
    """
    program = filter_program(machine, os.getpid())
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(packed)
    described = _Program(len(program), ctypes.addressof(buffer))
    if libc.prctl(SET_FILTER, FILTER_MODE, ctypes.byref(described), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp filters cannot be installed")
