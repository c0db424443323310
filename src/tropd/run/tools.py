"""Tools, environments and reward functions by name."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data import PromptData
from ..data.procedural import reasoning_gym_reward
from ..messages import NO_TOOL, TOOLS
from ..own_code import import_own

ENVIRONMENT = "environment"
"""The column that names each row's environment, where there are several."""

GIVEN_BY_TRL = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}
"""Arguments that every reward function gets; the others are columns of the data."""

PATH = "a dotted path that Python can import from here, such as {}"


@dataclass(frozen=True)
class RunTools:
    """What a student may call. Made by `find_tools`, handed to the trainer."""

    functions: list[Callable] = field(default_factory=list)  # called as they are
    # what makes one, such as its class, or several by name; `None` if there is none
    environments: Callable | dict[str, Callable] | None = None
    # the JSON schemas in a prompt, by the name of its environment
    schemas: dict[str | None, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def are_there(self) -> bool:
        return bool(self.schemas)

    def told(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows with the tools in their column, as a chat template renders them."""
        if not self.are_there:
            return list(rows)
        several = isinstance(self.environments, dict)
        return [row | {TOOLS: self.schemas[row[ENVIRONMENT] if several else None]} for row in rows]


NO_TOOLS = RunTools()


def find_tools(names: Sequence[str], environment: str | Mapping[str, str] | None) -> RunTools:
    functions = [imported("tools", name, PATH.format("my_module.my_tool")) for name in names]
    shared = [_schema("tools", name, function) for name, function in zip(names, functions, strict=True)]
    if not environment:
        return RunTools(functions, None, {None: shared} if shared else {})
    named = {None: environment} if isinstance(environment, str) else dict(environment)
    made = {name: imported(ENVIRONMENT, path, PATH.format("my_module.MyEnvironment")) for name, path in named.items()}
    schemas = {name: shared + _schemas_of(path, made[name]) for name, path in named.items()}
    return RunTools(functions, made[None] if isinstance(environment, str) else made, schemas)  # type: ignore


def _schemas_of(path: str, make: Callable) -> list[dict[str, Any]]:
    """The schemas of an environment's methods, of one that is made and thrown away."""
    environment = make()
    if not callable(getattr(environment, "reset", None)):
        raise ValueError(f"environment is {path!r}, which has no method `reset`; see docs/agents.md.")
    if not callable(getattr(environment, "get_reward", callable)):
        raise ValueError(f"environment is {path!r}, whose `get_reward` is not a method; define it, or remove it.")
    members = inspect.getmembers(type(environment), predicate=inspect.isfunction)
    return [
        _schema(ENVIRONMENT, f"{path}.{name}", getattr(environment, name))
        for name, _ in members
        if name not in NO_TOOL and not name.startswith("_")
    ]


def imported(field: str, name: str, wanted: str, default: str = "") -> Any:
    """What a dotted path names, from the working directory too; a bare name is one of the module `default`."""
    module, _, attribute = name.rpartition(".")
    try:
        return import_own(module or default, attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{field} has {name!r}, but {error}. Name {wanted}.") from error


def _schema(field: str, name: str, function: Any) -> dict[str, Any]:
    from transformers.utils import DocstringParsingException, TypeHintParsingException, get_json_schema

    try:
        return get_json_schema(function)
    except (DocstringParsingException, TypeHintParsingException, AttributeError, TypeError) as error:
        raise ValueError(
            f"{field} has {name!r}, of which no schema can be made: {str(error).splitlines()[0]}. Give it type hints, "
            "and a Google-style docstring with an Args section."
        ) from error


def check_rows_of_tools(tools: RunTools, data: PromptData) -> None:
    """Refuse data that tools cannot go with."""
    columns = data.dataset.column_names
    if not tools.are_there:
        return
    if isinstance(data.dataset[0]["prompt"], str):
        raise ValueError(
            "tools (or environment) is set, but the prompts are text, which cannot list tools. Make them messages: "
            "chat: true."
        )
    if TOOLS in columns:
        raise ValueError(
            f"tools (or environment) is set, but the data also has a column {TOOLS!r}. Remove one of the two."
        )
    if isinstance(tools.environments, dict):
        values = data.dataset[ENVIRONMENT] if ENVIRONMENT in columns else [None]
        for row, value in enumerate(values):
            if value not in tools.environments:
                raise ValueError(
                    f"environment has the names {', '.join(tools.environments)}, but row {row} of the data (counted "
                    f"from 0) has {value!r} in its column {ENVIRONMENT!r}. Give each row one of the names there."
                )


def reward_function(name: str) -> Callable:
    """A reward of `trl.rewards` by its name, or any function by its dotted path.

    `reasoning_gym` is the scorer of each row's task, see `data.procedural`.
    """
    if name == "reasoning_gym":
        return reasoning_gym_reward
    wanted = f"a function of trl.rewards, such as accuracy_reward, or {PATH.format('my_module.my_reward')}"
    return imported("reward_funcs", name, wanted, default="trl.rewards")


def check_reward_columns(functions: Sequence[Callable], columns: Sequence[str]) -> None:
    """Refuse a reward function that asks for a column which the data lacks."""
    for function in functions:
        needed = [
            parameter.name
            for parameter in inspect.signature(function).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        ]
        missing = [name for name in needed if name not in GIVEN_BY_TRL and name not in columns]
        if missing:
            name = getattr(function, "__name__", function)
            raise ValueError(
                f"reward_funcs has {name!r}, which reads a column {missing[0]!r} that the data does not have (it has: "
                f"{', '.join(columns)}). Add it to the data under this name, or use a different reward."
            )
