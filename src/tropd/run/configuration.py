"""YAML files and `--field value` overrides → one checked configuration, every value knowing where it was written.

A file may start from another with `extends: other.yaml` (a path relative to it); later values win: the other file, the
file, the command line. Mistakes are named by file and line. Plans of comparisons are read here too.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from ..objective.methods import SETTINGS, get_method
from ..shipped import locate, locate_field
from ..suggestions import did_you_mean, hint
from ..training.guards.field_types import kinds_of
from .settings import TRL_NAMES, RunSettings


@dataclass(frozen=True)
class Value:
    """A value and where it was written, such as `lora.yaml, line 7`; `""` for the command line.

    Text that is not quoted stays text until the type of its field is known: `007` may be a name, and `5e-6` a number.
    `inside` has the places of a mapping's own names, in full: `methods.tropd.gate`.
    """

    value: Any
    place: str
    inside: Mapping[str, str] = field(default_factory=dict)


_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp", "value")}


class Unquoted(str):
    """Text whose meaning depends on its field."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with the numbers of YAML 1.2: `1e-4`, and `1.0e4` without a sign."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@dataclass(frozen=True)
class Configuration:
    """A run's configuration, checked as far as that goes without loading anything.

    `trainer` has the fields of `TrOPDConfig` that were set, of the right types; `places` where each was written.
    """

    settings: RunSettings
    trainer: dict[str, Any]
    places: dict[str, str]

    def changed(self, **trainer: Any) -> "Configuration":
        """The configuration with other values of some trainer fields."""
        return replace(self, trainer={**self.trainer, **trainer})

    def training_arguments(self, **defaults: Any) -> Any:
        """The `TrOPDConfig`; `defaults` are fields for where the configuration is silent."""
        from ..training.config import TrOPDConfig

        try:
            return TrOPDConfig(**{**defaults, **self.trainer})
        except ValueError as error:
            raise at_place(error, self.places, self.trainer) from error


def resolve(file: str | Path | None, overrides: Sequence[str] = (), **otherwise: Any) -> Configuration:
    """Read `file` and the overrides, check names, types and the method, and give the configuration.

    Args:
        file: YAML, `recipe:NAME` for one of ours, or `None` where the overrides say everything.
        overrides: `["--learning_rate", "1e-5", "--chat", "--columns.prompt", "question"]`.
        otherwise: fields for where nothing else names them.

    Raises:
        ValueError: with the field, file and line, the value, why, and what to type instead.
    """
    if file is None and not overrides:
        raise ValueError(
            "there is no configuration. Give a file, `--config recipe:demo`, or the fields "
            "themselves: `--student A --teacher B --data prompts.jsonl --output_dir out`."
        )
    written = read_file(Path(locate(str(file)))) if file is not None else {}
    written = merge(written, read_overrides(overrides))
    return build({name: Value(value, "") for name, value in otherwise.items()} | written)


def build(written: Mapping[str, Value]) -> Configuration:
    """The configuration of values that were read."""
    _check_method(written)  # before anything slow is imported
    from ..training.config import TrOPDConfig

    hints = {**get_type_hints(TrOPDConfig), **get_type_hints(RunSettings)}
    types = {f.name: hints[f.name] for f in (*fields(TrOPDConfig), *fields(RunSettings))}
    _refuse_unknown(written, types)
    typed = {name: convert(name, value, types[name]) for name, value in written.items()}
    typed |= {name: _located(name, written[name].place, typed[name]) for name in _MAY_BE_SHIPPED if name in typed}
    places = {name: value.place for name, value in written.items()}
    ours = {f.name for f in fields(RunSettings)}
    settings = RunSettings(**{name: value for name, value in typed.items() if name in ours})
    trainer = {name: value for name, value in typed.items() if name not in ours}
    if not trainer.get("output_dir"):
        raise ValueError(
            "output_dir is not set; name a folder for the run: `output_dir: out` in the configuration, or "
            "--output_dir out"
        )
    return Configuration(settings, trainer, places)


_MAY_BE_SHIPPED = ("student", "teacher", "data", "eval_data")


def _located(field_name: str, place: str, value: Any) -> Any:
    """Names of shipped files and models as paths, wherever they stand in the value."""
    if isinstance(value, dict):
        return {name: _located(field_name, place, part) for name, part in value.items()}
    if isinstance(value, list):
        return [_located(field_name, place, part) for part in value]
    try:
        return locate_field(field_name, value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(_said(place, str(error))) from error


# ---------------------------------------------------------------------- reading


def read_file(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Value]:
    """The values of a YAML file and of the files that it extends."""
    values = _read_yaml(path)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not str(base.value or "").strip() or not isinstance(base.value, str):
        raise ValueError(f"{base.place}: extends has no value; name a file (`extends: base.yaml`), or remove it.")
    other = (path.parent / locate(str(base.value))).resolve()
    if other in extended_by or other == path.resolve():
        raise ValueError(
            f"{base.place}: extends is {str(base.value)!r}, which in turn extends this file; remove one of the two."
        )
    if not other.is_file():
        raise ValueError(f"{base.place}: extends is {str(base.value)!r}, but there is no file {_short(other)}.")
    return merge(read_file(other, (*extended_by, path.resolve())), values)


def _read_yaml(path: Path) -> dict[str, Value]:
    if path.is_dir():
        raise ValueError(f"--config is {str(path)!r}, which is a folder; name a YAML file.")
    if not path.is_file() and not path.is_fifo():  # a pipe, `--config <(...)`, is read once
        folder = path.parent if path.parent.is_dir() else Path()
        files = [_short(found) for found in folder.iterdir() if found.suffix in (".yaml", ".yml")]
        raise ValueError(f"--config is {str(path)!r}, but there is no such file.{did_you_mean(str(path), files)}")
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ValueError(
            f"{_short(path)}{line} is not YAML: {error.problem or error.context}. Correct it there."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{_short(path)} is not YAML text: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{_short(path)} is nested too deeply to be read.") from error
    if node is None:
        raise ValueError(f"{_short(path)} is empty; it should map fields to values, such as `seed: 42`.")
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{_short(path)} should map fields to values, such as `seed: 42`, one per line.")
    return _values_of(node, path)


def _values_of(node: Any, path: Path) -> dict[str, Value]:
    values: dict[str, Value] = {}
    places = _places(node, path)
    for key_node, value_node in node.value:
        name = str(key_node.value)
        inside = {inner: place for inner, place in places.items() if inner.startswith(f"{name}.")}
        try:
            values[name] = Value(_construct(value_node), places[name], inside)
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"{places[name]}: the value of {name} cannot be read: {error}") from error
    return values


def _places(root: Any, path: Path) -> dict[str, str]:
    """Every name of a mapping, and of those in it as `methods.tropd.gate`, with where it is written."""
    found: dict[str, str] = {}
    met, waiting = set(), [("", root)]
    while waiting:
        within, node = waiting.pop()
        if isinstance(node, yaml.SequenceNode) and id(node) not in met:
            waiting += [(within, item) for item in node.value]
        elif isinstance(node, yaml.MappingNode) and id(node) not in met:
            own: dict[str, str] = {}
            for key, value in node.value:
                place = f"{_short(path)}, line {key.start_mark.line + 1}"
                if not isinstance(key, yaml.ScalarNode):
                    raise ValueError(f"{place}: a field's name is text, such as `method`, and not a list or a mapping.")
                name = f"{within}{key.value}"
                if name in own:
                    raise ValueError(f"{place}: {name} was already given ({own[name]}); keep one of them.")
                own[name] = place
                waiting.append((f"{name}.", value))
            found |= own
        met.add(id(node))  # an alias, which may lead back to where it stands
    return found


def _construct(node: Any) -> Any:
    """The value of a YAML node; text without quotes is left for the field's type to read."""
    if isinstance(node, yaml.ScalarNode) and node.style is None and node.tag in _PLAIN_TAGS:
        return Unquoted(node.value)
    return _Loader("").construct_object(node, deep=True)


def read_overrides(arguments: Sequence[str]) -> dict[str, Value]:
    """`--field value`, `--field=value`, `--flag`, several values for a list, `--columns.prompt x` for a mapping."""
    values: dict[str, Value] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            raise ValueError(f"{word!r} is not a field; overrides look like `--learning_rate 1e-5`.")
        name, has_value, text = word[2:].partition("=")
        texts = [Unquoted(text)] if has_value else []
        while not has_value and rest and not rest[0].startswith("--"):
            texts.append(Unquoted(rest.pop(0)))
        name, _, key = name.partition(".")
        name = name.replace("-", "_")
        value: Any = texts[0] if len(texts) == 1 else texts
        values[name] = Value(_with_key(name, key, value, values) if key else value, "")
    return values


def _with_key(name: str, key: str, value: Any, earlier: Mapping[str, Value]) -> dict[str, Any]:
    so_far = earlier[name].value if name in earlier else {}
    if not isinstance(so_far, dict):
        raise ValueError(f"--{name} was given as {so_far!r} and as --{name}.{key}; use one of the two.")
    return {**so_far, key: value}


def merge(earlier: Mapping[str, Value], later: Mapping[str, Value]) -> dict[str, Value]:
    """`later` wins; two mappings for one field are merged key by key."""
    merged = dict(earlier)
    for name, value in later.items():
        before = merged.get(name)
        both = before is not None and isinstance(before.value, dict) and isinstance(value.value, dict)
        merged[name] = (
            Value({**before.value, **value.value}, value.place, {**before.inside, **value.inside})
            if both and before
            else value
        )
    return merged


# ---------------------------------------------------------------------- checking


def _check_method(written: Mapping[str, Value]) -> None:
    """Refuse an unknown method or a part it never reads, before TRL is imported."""
    from ..training.method_settings import MethodSettings

    types = get_type_hints(MethodSettings)
    name = written.get("method", Value("tropd", ""))
    if name.value in ("", None):
        raise ValueError(_said(name.place, "method is empty; name one, such as tropd (`tropd methods` lists them)."))
    convert("method", name, str)
    parts = {key: convert(key, written[key], types[key]) for key in SETTINGS if key in written}
    try:
        get_method(str(name.value), **parts)
    except ValueError as error:
        places = {key: value.place for key, value in written.items()}
        raise at_place(error, places, otherwise=name.place) from error


def at_place(
    error: ValueError, places: Mapping[str, str], values: Mapping[str, Any] | None = None, otherwise: str = ""
) -> ValueError:
    """The error with the place where its field was written.

    The field is the first word of our sentences; of others', the one whose value they quote.
    """
    text = str(error)
    if text.split(" ", 1)[0] in places:
        return ValueError(_said(places[text.split(" ", 1)[0]], text))
    quoted = [
        name
        for name, value in (values or {}).items()
        if isinstance(value, str) and value and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text)
    ]
    if len(quoted) == 1:
        return ValueError(
            _said(places.get(quoted[0], otherwise), f"{quoted[0]} is {(values or {})[quoted[0]]!r}: {text}")
        )
    return ValueError(_said(otherwise, text))


def _said(place: str, sentence: str) -> str:
    return f"{place}: {sentence}" if place else sentence


def _refuse_unknown(written: Mapping[str, Value], known: Mapping[str, Any]) -> None:
    if {"learning_rates", "methods"} <= written.keys():
        place = written["methods"].place.split(",")[0]
        raise ValueError(f"{place} is the plan of a comparison: `tropd compare {place} --out DIR`.")
    unknown = []
    for name, value in written.items():
        if name not in known:
            ours = f"; here it is {TRL_NAMES[name]!r}" if name in TRL_NAMES else hint(name, [*known, "extends"])
            unknown.append(_said(value.place, f"{name} is unknown{ours}"))
    if unknown:
        raise ValueError("\n".join(unknown) + ". `tropd train --help` lists the fields.")


def convert(name: str, written: Value, annotation: Any) -> Any:
    """The value as the field's type."""
    from pydantic import TypeAdapter, ValidationError

    kinds = kinds_of(annotation)
    if written.value == [] and not written.place:  # a flag of the command line
        if bool not in kinds:
            raise ValueError(f"--{name} has no value; type one after it.")
        return True
    if isinstance(written.value, list) and not written.place and not kinds & {list, dict}:
        more = ", ".join(repr(str(word)) for word in written.value[1:])
        raise ValueError(
            f"--{name} takes one value, and {more} belongs to no field; overrides look like `--field value`."
        )
    try:
        value = _meant(written.value, kinds)
        if isinstance(value, dict) and not written.place:
            value = {key: _meant_in_mapping(part, _holds_text(annotation)) for key, part in value.items()}
        return TypeAdapter(annotation, config={"coerce_numbers_to_str": True}).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        reason = reason[0].lower() + reason[1:]
        raise ValueError(_said(written.place, f"{name} is {_shown(written.value)}; {reason}.")) from error


def _meant(value: Any, kinds: set[Any]) -> Any:
    if isinstance(value, list):
        return [_meant(item, {str}) for item in value]
    if not isinstance(value, Unquoted):
        return [value] if isinstance(value, str) and list in kinds and str not in kinds else value
    text = str(value)
    if text in ("null", "~", "None", "") and NoneType in kinds:
        return None
    if text[:1] in "{[" and kinds & {dict, list}:
        return _read_flow(text)
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kinds & {int, float} and str in kinds and _is_number(text):
        return float(text) if set(text) & set(".eE") else int(text)
    return [text] if list in kinds and str not in kinds else text


def _holds_text(annotation: Any) -> bool:
    """Are the values of a mapping in this field names, such as those of columns?"""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    mappings = [part for part in parts if (get_origin(part) or part) is dict]
    return bool(mappings) and all(get_args(part)[1:] == (str,) for part in mappings)


def _meant_in_mapping(value: Any, is_text: bool) -> Any:
    """The value of `--field.key value`: text for a field that holds names, else what YAML would read."""
    if isinstance(value, list) and not is_text:
        return [_meant_in_mapping(item, is_text) for item in value] if value else True  # a flag
    if not isinstance(value, Unquoted):
        return value
    return str(value) if is_text else _read_flow(str(value))


def _read_flow(text: str) -> Any:
    """What YAML or JSON reads on a line."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text  # such as a chat template, which is text where the field allows it


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shown(value: Any) -> str:
    return repr(str(value)) if isinstance(value, Unquoted) else repr(value)


def _short(path: Path) -> str:
    """The path as a person would type it here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") and path.is_absolute() else relative
