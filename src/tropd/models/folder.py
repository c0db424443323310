"""Checks a model folder before anything heavy is loaded: its configuration, weights and tokenizer.

Nothing is downloaded and no tensor is read; a Hub name is left to Transformers.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..suggestions import nearest

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
CAUSAL_LM = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
LFS_POINTER = b"version https://git-lfs"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
    "vocab.json", "vocab.txt", "tekken.json", "tiktoken.model",
)  # fmt: skip
JSON_FILES = ("generation_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")
"""Read by Transformers where they exist; one that is broken is skipped by some readers and a traceback in others."""

CONFIG_TYPES: dict[str, tuple[type, str]] = {
    "auto_map": (dict, "a mapping"),
    "model_type": (str, "text"),
    "architectures": (list, "a list"),
}
"""Fields of config.json that are read here; Transformers looks at the others."""

LONGEST_REASON = 300
"""At most this many characters of a library's reason are shown."""

SHOWN = 3
"""At most this many tensors are named in a message; the others are counted."""

TO_SAFETENSORS = (
    'python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('{0}', dtype='auto').save_pretrained('{0}-safetensors')\""
)


def is_local(name: str | Path) -> bool:
    """Is `name` something on this disk, or could only be? Everything else is a name of the Hub."""
    text = str(name)
    if Path(text).exists() or not HUB_ID.fullmatch(text):
        return True
    owner, slash, _ = text.partition("/")
    return bool(slash) and Path(owner).is_dir()


def check_model_folder(name: str | Path, role: str) -> None:
    """Refuse a folder that does not hold a complete causal language model and its tokenizer."""
    if "://" in str(name):
        raise ValueError(
            f"{role} is {str(name)!r:.200}, an address, but this model is loaded in this process. Give a folder or a "
            "Hub name. Only the teacher of `tropd train`, `check` and `generate` may be behind a server: "
            "http://host:port/v1."
        )
    if not is_local(name):
        near = None if "/" in str(name) else near_folder(Path(name))
        if near is not None:  # asking the Hub for a mistyped folder takes long, and half a minute without a network
            raise ValueError(f"{role} is {str(name)!r}, but there is no folder of this name. Did you mean {near!r}?")
        return
    folder, start = Path(name), f"{role} is {str(name)!r}"
    _check_is_folder(folder, start)
    _check_config(folder, start)
    _check_index(folder, start, {tensor for file in weight_files(folder, start) for tensor in read_shapes(file, start)})
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise ValueError(
            f"{start}, which has no tokenizer (no tokenizer.json, tokenizer_config.json or vocabulary file). Copy the "
            "tokenizer files of its base model into the folder."
        )
    for file in JSON_FILES:
        if (folder / file).is_file():
            _read_json(folder / file, start)


def check_weights(name: str | Path, role: str, trust_remote_code: bool = False) -> None:
    """Refuse a folder whose weights are not those that its config.json describes; no weight is read.

    Transformers fills a tensor that it does not find with random numbers and says so in a log only. Imports torch and
    Transformers, so call it after `check_model_folder`; and before training arguments with DeepSpeed ZeRO-3 are
    made, which change how models are built. Quantised weights, and a name of the Hub, are let through.
    """
    if not is_local(name):
        return
    from .loading_report import loading_report

    start = f"{role} is {str(name)!r}"
    report = loading_report(Path(name), weight_files(Path(name), start), start, trust_remote_code)
    advice = "Copy or download config.json and the weights again from the same source."
    if report.missing:
        raise ValueError(
            f"{start}, whose weights lack {_some(report.missing)}: its config.json requires them, and Transformers "
            f"would fill them with random numbers. {advice}"
        )
    if report.mismatched:
        raise ValueError(f"{start}, whose weights do not match its config.json: {_some(report.mismatched)}. {advice}")


def _some(items: list[str]) -> str:
    """The first items, and how many more there are.

    >>> _some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    return ", ".join(items[:SHOWN]) + (f" and {len(items) - SHOWN:,} more" if len(items) > SHOWN else "")


def weight_bytes(folder: str | Path) -> int:
    """Size of the weights on disk."""
    return sum(file.stat().st_size for file in weight_files(Path(folder), f"the folder is {str(folder)!r}"))


def _check_is_folder(folder: Path, start: str) -> None:
    if str(folder).startswith("~"):
        raise ValueError(
            f"{start}, and `~` means your home folder only in a shell. Write {str(folder.expanduser())!r}."
        )
    if folder.is_file():
        raise ValueError(f"{start}, which is a file. Give the folder of the model: {str(folder.parent)!r}.")
    if not folder.is_dir():
        raise ValueError(f"{start}, but there is no such folder. {_instead_of_missing(folder)}")


def near_folder(folder: Path) -> str | None:
    """The folder beside `folder` with the most similar name, or `None` where none is like it."""
    near = nearest(folder.name, _siblings(folder))
    return None if near is None else str(folder.parent / near)


def _siblings(folder: Path) -> list[str]:
    """The folders that are where `folder` would be."""
    if not folder.parent.is_dir():
        return []
    return sorted(path.name for path in folder.parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def _instead_of_missing(folder: Path) -> str:
    """What to type instead of a folder that is not there."""
    parent = folder.parent
    if not parent.is_dir():
        existing = next((above for above in parent.parents if above.is_dir()), Path("."))
        there = f"; {str(existing)!r} does" if existing != Path(".") else ""
        return f"{str(parent)!r} does not exist either{there}. Correct the path."
    near, siblings = near_folder(folder), _siblings(folder)
    if near is not None:
        return f"Did you mean {near!r}?"
    found = f"has: {', '.join(siblings[:8])}" if siblings else "has no folders"
    return f"{str(parent)!r} {found}. Correct the path; if you mean a Hub name, run from another folder."


def _check_config(folder: Path, start: str) -> None:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{start}, which is not a model folder: it has no config.json. {_instead_of(folder)}")
    config = _read_json(folder / "config.json", start)
    for name, (wanted, what) in CONFIG_TYPES.items():
        if not isinstance(config.get(name) or wanted(), wanted):
            raise ValueError(
                f"{start}, whose config.json has {name}: {config[name]!r:.60}, which is not {what}. Copy or download "
                "that file again."
            )
    if "AutoModelForCausalLM" in (config.get("auto_map") or {}):
        return
    if not config.get("model_type"):
        raise ValueError(
            f"{start}, whose config.json has no model_type, so Transformers does not know which model it is. Give a "
            "folder written by save_pretrained."
        )
    names = config.get("architectures") or []
    causal = not names or any(str(name).endswith(CAUSAL_LM) for name in names)
    if not causal or config.get("is_encoder_decoder"):
        kind = ", ".join(map(str, names)) or config["model_type"]
        raise ValueError(
            f"{start}, which is a {kind} and not a causal language model; it has no next-token distribution to distil. "
            "Give a model whose config.json names a …ForCausalLM."
        )


def _instead_of(folder: Path) -> str:
    """What to do about a folder without config.json."""
    if (folder / "adapter_config.json").is_file():
        base = _read_json(folder / "adapter_config.json", "adapter").get("base_model_name_or_path")
        return (
            f"It is a PEFT adapter of {base!r}: merge the two (peft.AutoPeftModelForCausalLM.from_pretrained(folder)"
            ".merge_and_unload().save_pretrained(merged), and the tokenizer's save_pretrained(merged)) and give the "
            "merged folder, or give the base model."
        )
    inside = [path.parent for path in folder.glob("*/config.json")]
    if inside:
        return f"Did you mean {str(max(inside, key=lambda path: (len(path.name), path.name)))!r}?"
    return "Give the folder that save_pretrained wrote, with config.json, *.safetensors and the tokenizer's files."


def weight_files(folder: Path, start: str) -> list[Path]:
    """The safetensors files that Transformers would load."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise ValueError(f"{start}, {_without_weights(folder)}")
    shards = sorted({str(name) for name in _weight_map(folder, start).values()})
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{start}, whose weights are incomplete: {len(missing)} of the {len(shards)} files that {INDEX} names are "
            f"missing, the first is {missing[0]}. Copy or download the missing files."
        )
    return [folder / name for name in shards]


def read_shapes(path: Path, start: str) -> dict[str, list[int]]:
    """The tensors of a safetensors file and their shapes, from its header."""
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as stream:
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(f"{start}, whose {path.name} is a Git LFS pointer without weights. Run `git lfs pull`.")
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{start}, whose {path.name} ({path.stat().st_size} bytes) is not a complete safetensors file ({error}). "
            "Copy or download it again."
        ) from error


def _weight_map(folder: Path, start: str) -> dict[str, Any]:
    """Tensor → file of a folder whose weights are in several files."""
    weight_map = _read_json(folder / INDEX, start).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{start}, whose {INDEX} has no weight_map. Copy or download that file again.")
    return weight_map


def _check_index(folder: Path, start: str, tensors: set[str]) -> None:
    """Refuse files that do not hold what the index promises, such as one that was copied over another."""
    if (folder / WEIGHTS).is_file():
        return  # Transformers takes it before any index
    weight_map = _weight_map(folder, start)
    lost = [name for name in weight_map if name not in tensors]
    if lost:
        raise ValueError(
            f"{start}, whose {INDEX} names tensors that no file holds: {_some(lost)}, which should be in "
            f"{weight_map[lost[0]]}. Copy or download the index and the weights again from the same source."
        )


def _without_weights(folder: Path) -> str:
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        return (
            f"which has {others[0]} but neither {WEIGHTS} nor {INDEX}, the names Transformers looks for. Rename it, or "
            "copy the index file."
        )
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"whose only weights are pickled ({pickles[0]}), and loading a pickle can run any code. If you trust it, "
            f"convert it once: {TO_SAFETENSORS.format(folder)} and copy the tokenizer's files."
        )
    return f"which has a config.json but no weights ({WEIGHTS}). Copy or download the weights into it."


def _read_json(path: Path, start: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{start}, whose {path.name} is not JSON ({error}). Copy or download that file again."
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{start}, whose {path.name} is not a JSON object. Copy or download that file again.")
    return value


def _constant(word: str) -> float:
    """NaN is no setting of a model; an infinity may be, such as the limit of Mamba's time steps."""
    if word == "NaN":
        raise ValueError("it contains NaN")
    return float(word)


@contextmanager
def read_by_transformers(start: str, what: str, passing: type[Exception] = ImportError) -> Iterator[None]:
    """Turn Transformers' errors about a folder's small files into a clear message.

    Args:
        start: how a sentence starts, such as `teacher is 'models/teacher'`; one that starts so is let through.
        what: `config.json`, or another file or several.
        passing: another kind of exception that is let through.

    Raises:
        ValueError: with the folder, the file, and the library's reason. Errors of the disk, a package that is not
            installed and memory that ran out travel.
    """
    try:
        yield
    except (ImportError, MemoryError, passing):
        raise
    except Exception as error:
        if (isinstance(error, OSError) and error.errno is not None) or str(error).startswith(start):
            raise
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{start}, which contains its own code. It runs only if you trust it: set trust_remote_code."
            ) from error
        reason = " ".join(str(error).split()) or "no reason given"
        reason = reason if len(reason) <= LONGEST_REASON else reason[:LONGEST_REASON] + "…"
        raise ValueError(
            f"{start}, whose {what} cannot be used by Transformers ({type(error).__name__}: {reason}). Correct what it "
            "names, or copy or download the folder again."
        ) from error
