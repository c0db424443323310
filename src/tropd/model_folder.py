"""A model folder, looked at before anything heavy is loaded: its configuration, its weights, its tokenizer.

Nothing is downloaded and no tensor is read; a name of the Hub is let through for Transformers to find.
"""

import difflib
import json
import re
from pathlib import Path
from typing import Any

from .safetensors_header import check_complete

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
CAUSAL_LM = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "tiktoken.model",
)
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
    """Refuse a folder that does not hold a complete causal language model and its tokenizer.

    Args:
        name: a folder, or a name of the Hub, which is let through.
        role: `student` or `teacher`; starts the sentence.

    Raises:
        ValueError: with the value, what is wrong, and what to type.
    """
    if not is_local(name):
        return
    folder, start = Path(name), f"{role} is {str(name)!r}"
    _check_is_folder(folder, start)
    _check_config(folder, start)
    for file in weight_files(folder, start):
        check_complete(file, start)
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise ValueError(
            f"{start}, which holds no tokenizer (no tokenizer.json, tokenizer_config.json or vocabulary file). Copy "
            "the tokenizer files of the model that it was made from into the folder."
        )


def weight_bytes(folder: str | Path) -> int:
    """Size of the weights on disk."""
    return sum(file.stat().st_size for file in weight_files(Path(folder), f"the folder is {str(folder)!r}"))


def _check_is_folder(folder: Path, start: str) -> None:
    if str(folder).startswith("~"):
        raise ValueError(
            f"{start}, and `~` stands for your home only where a shell reads it. Write {str(folder.expanduser())!r}."
        )
    if folder.is_file():
        raise ValueError(f"{start}, which is a file. Give the folder of the model: {str(folder.parent)!r}.")
    if not folder.is_dir():
        raise ValueError(f"{start}, and there is no such folder. {_nearest(folder)}")


def _nearest(folder: Path) -> str:
    """What to type instead of a folder that is not there."""
    parent = folder.parent
    if not parent.is_dir():
        existing = next((above for above in parent.parents if above.is_dir()), Path("."))
        return f"{str(parent)!r} does not exist either; {str(existing)!r} does. Correct the path."
    siblings = sorted(path.name for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))
    near = difflib.get_close_matches(folder.name, siblings, n=1)
    if near:
        return f"Did you mean {str(parent / near[0])!r}?"
    found = f"has: {', '.join(siblings[:8])}" if siblings else "has no folders"
    return f"{str(parent)!r} {found}. Correct the path; if you mean a name of the Hub, run from another folder."


def _check_config(folder: Path, start: str) -> None:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{start}, which is not a model folder: it has no config.json. {_instead_of(folder)}")
    config = _read_json(folder / "config.json", start)
    if "AutoModelForCausalLM" in config.get("auto_map", {}):
        return
    if not config.get("model_type"):
        raise ValueError(
            f"{start}, whose config.json has no model_type, so Transformers cannot tell which model it is. Give a "
            "folder written by save_pretrained."
        )
    names = config.get("architectures") or []
    causal = not names or any(str(name).endswith(CAUSAL_LM) for name in names)
    if not causal or config.get("is_encoder_decoder"):
        kind = ", ".join(map(str, names)) or config["model_type"]
        raise ValueError(
            f"{start}, which is a {kind} and not a causal language model; there is no next token to distil. Give a "
            "model whose config.json names a …ForCausalLM."
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
    """The safetensors files that Transformers would load.

    Raises:
        ValueError: there are none, or the index names files that are not there.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise ValueError(f"{start}, {_without_weights(folder)}")
    weight_map = _read_json(folder / INDEX, start).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{start}, whose {INDEX} has no weight_map. Copy or download that file again.")
    shards = sorted({str(name) for name in weight_map.values()})
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{start}, whose weights are incomplete: {len(missing)} of the {len(shards)} files that {INDEX} names are "
            f"missing, the first is {missing[0]}. Copy or download the missing files."
        )
    return [folder / name for name in shards]


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
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{start}, whose {path.name} is not JSON ({error}). Copy or download that file again."
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{start}, whose {path.name} is not a JSON object. Copy or download that file again.")
    return value
