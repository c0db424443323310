"""From YAML to a plan: unknown, missing and contradictory fields are refused with a message. No torch here."""

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from ..objective.methods import SETTINGS
from ..proving_ground.domains import DOMAINS
from ..run.configuration import Value, convert, read_file
from ..shipped import locate
from ..suggestions import hint
from ..training.guards.field_types import check_value
from .plan import DIVERGENCES, ENVIRONMENTS, SPLITS, STATES, Plan, Setting

RESERVED = {
    "output_dir": "each cell has its own folder",
    "seed": "it is in `seeds`",
    "learning_rate": "it is in `learning_rates`, or among the settings of one method",
    "max_steps": "a run ends when `student_tokens` are written",
    "num_train_epochs": "a run ends when `student_tokens` are written",
    "per_device_train_batch_size": "it is prompts_per_step × rollouts_per_prompt",
    "num_generations": "it is `rollouts_per_prompt`",
    "max_completion_length": "it is `max_length`",
    "logging_steps": "every step is logged, since its tokens are counted",
    "method": "it belongs to `methods`",
}
"""Fields of the trainer that the plan decides elsewhere."""


def load_plan(path: str | Path, teacher: str | None = None) -> Plan:
    """Read a plan, a file or `recipe:NAME`; `teacher` is for the settings that name none."""
    path = locate(str(path))
    if not Path(path).is_file():
        raise ValueError(f"the plan is {str(path)!r}, but there is no such file.")
    written = read_file(Path(path))
    types = {name: kind for name, kind in get_type_hints(Plan).items() if get_origin(kind) is not dict}
    data = {name: convert(name, value, types.get(name, Any)) for name, value in written.items()}
    try:
        return read_plan(data, teacher)
    except ValueError as error:
        raise ValueError(f"{_place(str(error), written) or path}: {error}") from error


def _place(sentence: str, written: Mapping[str, Value]) -> str | None:
    """Where the field is written that a sentence starts with, or the mapping that the field is in."""
    places = {name: place for value in written.values() for name, place in value.inside.items()}
    places |= {name: value.place for name, value in written.items()}
    names = re.sub(r"^(?:the plan|(.*?)) has '(.*?)'", r"\1.\2", sentence).replace(": ", ".", 1).removeprefix(".")
    named = [name for name in places if re.match(rf"{re.escape(name)}(?!\w)", names)]
    return places[max(named, key=len)] if named else None


def read_plan(data: Any, teacher: str | None = None) -> Plan:
    """The plan in plain data, checked."""
    _check_keys(data, Plan, "the plan")
    if not isinstance(data["settings"], dict) or not data["settings"]:
        raise ValueError("settings must map a name to a setting, and there is none.")
    settings = {name: _read_setting(name, value, teacher) for name, value in data["settings"].items()}
    if not isinstance(data["methods"], dict) or not data["methods"]:
        raise ValueError("methods must map a label to a method's changed parts, and there is none.")
    methods = {label: {} if changes is None else changes for label, changes in data["methods"].items()}
    trainer = {} if data.get("trainer") is None else data["trainer"]
    plan = Plan(**{**data, "settings": settings, "methods": methods, "trainer": trainer})
    _check_numbers(plan)
    _check_methods(plan)
    _check_choice(plan)
    return plan


def as_now(plan: dict[str, Any]) -> dict[str, Any]:
    """A plan in plain data as today's tropd writes it: fields that it did not know yet have their defaults."""
    return json.loads(json.dumps(read_plan(plan).as_dict()))  # type: ignore[no-any-return]


def _read_setting(name: str, value: Any, teacher: str | None) -> Setting:
    where = f"settings.{name}"
    _check_label("settings", name)
    _check_keys(value, Setting, where)
    try:
        setting = Setting(**value)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from error
    if not setting.teachers and not setting.teacher:
        setting = Setting(**{**value, "teacher": teacher or ""})
    given = [source for source in ("domains", "stories", "data", "environment") if getattr(setting, source)]
    if len(given) != 1:
        raise ValueError(
            f"{where} has {' and '.join(given) or 'no prompts'}; give one of domains (graded problems), stories (the "
            "teacher's own texts), data (files) or environment (several turns, with tools)."
        )
    _check_source(where, setting)
    _check_models(where, setting)
    return setting


def _check_source(where: str, setting: Setting) -> None:
    for domain in setting.domains:
        if domain not in DOMAINS:
            raise ValueError(
                f"{where}.domains has {domain!r}, which is unknown{hint(domain, DOMAINS)}. Known: {', '.join(DOMAINS)}."
            )
    if setting.environment and setting.environment not in ENVIRONMENTS:
        raise ValueError(
            f"{where}.environment is {setting.environment!r}{hint(setting.environment, ENVIRONMENTS)}. Environments "
            f"whose episodes are graded: {', '.join(ENVIRONMENTS)}."
        )
    if setting.stories and (len(setting.stories) != 2 or not 1 <= setting.stories[0] <= setting.stories[1]):
        raise ValueError(f"{where}.stories is {setting.stories}; give the shortest and the longest prompt: [4, 12].")
    if setting.data and set(setting.data) != set(SPLITS):
        raise ValueError(f"{where}.data has {', '.join(setting.data)}; give one file each for {', '.join(SPLITS)}.")


def _check_models(where: str, setting: Setting) -> None:
    if setting.teachers and setting.teacher:
        raise ValueError(f"{where} has teacher and teachers; give one teacher, or one for each domain.")
    if setting.teachers and set(setting.teachers) != set(setting.domains):
        raise ValueError(
            f"{where}.teachers has {', '.join(setting.teachers)}; give one for each of its domains: "
            f"{', '.join(setting.domains) or 'it has no domains'}."
        )
    if not setting.teachers and not setting.teacher:
        raise ValueError(f"{where} names no teacher; add `teacher: path/or/name`, or type --teacher path/or/name.")
    if isinstance(setting.student, dict) and (set(setting.student) != {"keep_layers"} or setting.teachers):
        raise ValueError(
            f"{where}.student is {setting.student}; name a model, or write {{keep_layers: [0, 1, 4]}} for layers of "
            "the one teacher."
        )


def _check_numbers(plan: Plan) -> None:
    if set(plan.prompts) != set(SPLITS):
        raise ValueError(f"prompts is {plan.prompts}; give a number for each of {', '.join(SPLITS)}.")
    positive = ("student_tokens", "max_length", "prompts_per_step", "rollouts_per_prompt", "grid_tokens")
    counts = [(name, getattr(plan, name), 1) for name in positive]
    counts += [(name, getattr(plan, name), 0) for name in ("divergence_prompts", "points", "point_prompts")]
    counts += [(f"prompts.{split}", count, 1) for split, count in plan.prompts.items()]
    for name, value, least in counts:
        if value is not None and value < least:
            raise ValueError(f"{name} is {value!r}; use a whole number of at least {least}.")
    for name in ("seeds", "learning_rates"):
        values = getattr(plan, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} is {values!r}; give a list of different numbers, at least one.")
    for seed in (*plan.seeds, plan.grid_seed, plan.prompt_seed):
        if not 0 <= seed < 2**32:
            raise ValueError(f"a seed is {seed!r}; seeds are whole numbers from 0 to 4294967295.")
    wrong = [rate for rate in plan.learning_rates if not rate > 0]
    if wrong:
        raise ValueError(f"learning_rates has {wrong[0]!r}; rates are numbers above 0.")


def _check_methods(plan: Plan) -> None:
    for label, parts in plan.methods.items():
        _check_label("methods", label)
        own = ("method", "learning_rate")
        _check_trainer(f"methods.{label}", {name: value for name, value in parts.items() if name not in own})
        _check_rate(plan, label)
        try:
            plan.method_of(label)
        except ValueError as error:
            raise ValueError(f"methods.{label}: {error}") from error
    if plan.reference not in plan.methods:
        raise ValueError(
            f"reference is {plan.reference!r}, which is not one of the methods ({', '.join(plan.methods)}). Name one."
        )
    _check_trainer("trainer", plan.trainer)
    for name in plan.trainer:
        if name in SETTINGS:
            raise ValueError(
                f"trainer.{name} cannot be set here: it is a setting of a method, and belongs under `methods`."
            )


def _check_rate(plan: Plan, label: str) -> None:
    """A method's own learning rate: one number, or one for some of the settings."""
    given = plan.methods[label].get("learning_rate")
    by_setting = given if isinstance(given, dict) else {} if given is None else dict.fromkeys(plan.settings, given)
    for name, rate in by_setting.items():
        if name not in plan.settings:
            raise ValueError(
                f"methods.{label}.learning_rate has {name!r}, which is not a setting{hint(name, plan.settings)}."
            )
        if type(rate) not in (int, float) or not 0 < rate < float("inf"):
            raise ValueError(f"methods.{label}.learning_rate is {rate!r}; rates are numbers above 0.")


def _check_trainer(where: str, given: Mapping[str, Any]) -> None:
    """Fields of the trainer leave alone what holds the comparison together."""
    for name in given:
        if name in RESERVED:
            raise ValueError(f"{where}.{name} cannot be set: {RESERVED[name]}.")
    schedule = given.get("lr_scheduler_type", "constant")
    if not str(schedule).startswith("constant"):
        raise ValueError(
            f"{where}.lr_scheduler_type is {schedule!r}; a run ends when its tokens are written, so its last step is "
            "unknown at the start. Use constant or constant_with_warmup."
        )


def _check_label(where: str, label: Any) -> None:
    if not isinstance(label, str) or not re.fullmatch(r"[\w.+ -]*\w", label) or label.startswith("."):
        raise ValueError(f"{where} has the name {label!r}, which also names a folder: use letters, digits, - and _.")


def _check_choice(plan: Plan) -> None:
    known = ["accuracy", *(f"{states}/{name}" for states in STATES for name in DIVERGENCES)]
    if plan.select_on not in known:
        raise ValueError(f"select_on is {plan.select_on!r}{hint(plan.select_on, known)}; choose {', '.join(known)}.")
    ungraded = [name for name, setting in plan.settings.items() if not setting.is_graded]
    if plan.select_on == "accuracy" and ungraded:
        raise ValueError(
            f"select_on is 'accuracy', but nothing grades the responses of settings.{ungraded[0]}. Choose a divergence."
        )
    if plan.select_on != "accuracy" and plan.divergence_prompts == 0:
        raise ValueError(f"select_on is {plan.select_on!r}, but divergence_prompts is 0. Choose 'accuracy', or 64.")


def _check_keys(data: Any, record: type, where: str) -> None:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} must map field names to values; it is {data!r:.60}.")
    known = {f.name: f for f in fields(record)}
    for key in data:
        if key not in known:
            raise ValueError(
                f"{where} has {key!r}, which is unknown{hint(str(key), known)}. Known: {', '.join(known)}."
            )
    needed = [name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in needed if name not in data]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}.")


def check_trainer_fields(plan: Plan) -> None:
    """Refuse a name in `trainer`, or beside a method's parts, that `TrOPDConfig` does not have, and a value of no type
    that it takes.

    TRL is imported for it, which takes seconds; a plan without such names, as most are, does not wait for that.
    """
    named = [("trainer", name, value) for name, value in plan.trainer.items()] + [
        (f"methods.{label}", name, value)
        for label, parts in plan.methods.items()
        for name, value in parts.items()
        if name not in ("method", "learning_rate", *SETTINGS)
    ]
    if not named:
        return
    from ..training.config import TrOPDConfig

    known = [field.name for field in fields(TrOPDConfig) if field.init]
    hints = get_type_hints(TrOPDConfig)
    for where, name, value in named:
        if name not in known:
            raise ValueError(
                f"{where} has {name!r}, which is neither a setting of a method nor a field of "
                f"TrOPDConfig{hint(name, [*SETTINGS, *known])}."
            )
        check_value(f"{where}.{name}", value, hints[name])
