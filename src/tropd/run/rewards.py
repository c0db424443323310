"""Reward functions by name."""

import inspect
from collections.abc import Callable, Sequence

from ..data.procedural import reasoning_gym_reward
from ..own_code import import_own

GIVEN_BY_TRL = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}
"""Arguments that every reward function gets; the others are columns of the data."""


def reward_function(name: str) -> Callable:
    """A reward of `trl.rewards` by its name, or any function by its dotted path, from the working directory too.

    `reasoning_gym` is the scorer of each row's task, see `data.procedural`.
    """
    if name == "reasoning_gym":
        return reasoning_gym_reward
    module, _, function = name.rpartition(".")
    module = module or "trl.rewards"
    try:
        return import_own(module, function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"reward_funcs has {name!r}, but {error}. Name a function of trl.rewards, such as accuracy_reward, or a "
            "dotted path that Python can import from here, such as my_module.my_reward."
        ) from error


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
