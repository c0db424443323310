"""Landlock: which files a process may read. Nothing can be written, made or removed, and no TCP port reached."""

import ctypes
import os
import struct
from collections.abc import Iterable

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""System calls, with one number on every machine."""

VERSION = 1
PATH_BENEATH = 1

EXECUTE_TO_MAKE_SYMLINK, REFER, TRUNCATE, DEVICE_IOCTL = 13, 14, 15, 16
"""How many rights over files there are since versions 1, 2, 3 and 5 of the interface."""

BIND_AND_CONNECT, ABSTRACT_SOCKETS_AND_SIGNALS = 3, 3

READ_FILE, READ_DIRECTORY = 4, 8


def landlock_version(libc: ctypes.CDLL) -> int:
    """The version of the kernel's interface; 0 where Landlock is missing or turned off."""
    return max(0, libc.syscall(CREATE_RULESET, None, 0, VERSION))


def restrict_files(libc: ctypes.CDLL, readable: Iterable[str], listable: Iterable[str] = ()) -> None:
    """From here on this process reads only files and folders that are `readable`, with all that lies beneath.

    Of folders that are `listable` names may be read, and no content.

    Raises:
        OSError: the kernel cannot.
    """
    version = landlock_version(libc)
    ruleset = _create_ruleset(libc, version)
    try:
        for path in readable:
            _allow(libc, ruleset, path, READ_FILE | (READ_DIRECTORY if os.path.isdir(path) else 0))
        for path in listable:
            _allow(libc, ruleset, path, READ_DIRECTORY)
        if libc.syscall(RESTRICT_SELF, ruleset, 0):
            raise OSError(ctypes.get_errno(), "Landlock cannot be turned on")
    finally:
        os.close(ruleset)


def _create_ruleset(libc: ctypes.CDLL, version: int) -> int:
    """Refuse every right that this kernel's Landlock knows of; a structure is as long as its version has it."""
    rights = {1: EXECUTE_TO_MAKE_SYMLINK, 2: REFER, 3: TRUNCATE, 4: TRUNCATE}.get(version, DEVICE_IOCTL)
    fields = [(1 << rights) - 1]
    fields += [BIND_AND_CONNECT] if version >= 4 else []
    fields += [ABSTRACT_SOCKETS_AND_SIGNALS] if version >= 6 else []
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = libc.syscall(CREATE_RULESET, ctypes.c_char_p(attributes), len(attributes), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "the kernel has no Landlock")
    return ruleset


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    if not os.path.exists(path):
        return
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", rights, descriptor)
        if libc.syscall(ADD_RULE, ruleset, PATH_BENEATH, ctypes.c_char_p(rule), 0):
            raise OSError(ctypes.get_errno(), f"Landlock cannot allow {path}")
    finally:
        os.close(descriptor)
