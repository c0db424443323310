"""The header of a safetensors file, read without loading a tensor: what is in it, and is the file whole?"""

import json
import struct
from pathlib import Path
from typing import Any

LENGTH = struct.Struct("<Q")
LONGEST_HEADER = 100_000_000
"""The format's own limit, in bytes."""

LFS_POINTER = b"version https://git-lfs"


def read_header(path: Path, start: str) -> dict[str, dict[str, Any]]:
    """The tensors of a file, name → `dtype`, `shape` and `data_offsets`; its size must be what they add up to.

    Args:
        path: a `.safetensors` file.
        start: how the sentence starts, such as `teacher is 'models/teacher'`.

    Raises:
        ValueError: the file is truncated, or not a safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        beginning = stream.read(max(LENGTH.size, len(LFS_POINTER)))
        if beginning == LFS_POINTER:
            raise ValueError(
                f"{start}, whose {path.name} is a Git LFS pointer without the weights. Run `git lfs pull`."
            )
        length = LENGTH.unpack_from(beginning)[0] if len(beginning) >= LENGTH.size else 0
        stream.seek(LENGTH.size)
        header = _parsed(stream.read(length)) if 0 < length <= min(LONGEST_HEADER, size - LENGTH.size) else None
    if header is None:
        raise ValueError(
            f"{start}, whose {path.name} ({size} bytes) does not start with a safetensors header: it is truncated or "
            "not a safetensors file. Copy or download it again."
        )
    tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    expected = LENGTH.size + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    if size != expected:
        what = "is truncated" if size < expected else "is longer than its header says"
        raise ValueError(
            f"{start}, whose {path.name} {what}: it has {size} of {expected} bytes. Copy or download it again."
        )
    return tensors


def _parsed(header: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(header)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
