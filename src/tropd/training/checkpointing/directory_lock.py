"""One run in an output directory at a time, by a lock of the system's: it goes with the process, however that ends."""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

LOCK = ".lock"
UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_held: dict[Path, int] = {}


@contextmanager
def only_run_in(directory: str | Path) -> Iterator[None]:
    """Hold `directory` for this process; it may be nested.

    Raises:
        ValueError: another process trains in it.
    """
    place = Path(directory).resolve()
    if place in _held:
        yield
        return
    place.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(place / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(descriptor, directory)
        _held[place] = descriptor
        yield
    finally:
        _held.pop(place, None)
        os.close(descriptor)  # which unlocks; the file stays, since removing it would let two processes lock two files


def _lock(descriptor: int, directory: str | Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            logger.warning(
                "the file system of %s does not support locks (%s), so nothing prevents a second run in this folder.",
                directory,
                error,
            )
            return
        if not isinstance(error, BlockingIOError):
            raise
        owner = os.read(descriptor, 99).decode(errors="replace").strip()
        raise ValueError(
            f"output_dir is {str(directory)!r}, where another process is training{f' ({owner})' if owner else ''}: "
            "checkpoints and logs of two runs would be mixed. Wait for it, stop it, or choose another folder."
        ) from error
    os.truncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode())
