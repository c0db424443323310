"""A user's own grader: a function that gives each response a reward, as those that TRL trains with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...own_code import import_own
from .verdict import RIGHT, UNDECIDED, WRONG, Verdict


@dataclass(frozen=True)
class RewardTest:
    """What a user's function is called with, beside the response.

    It takes `prompts`, `completions` and the row's other columns, each a list of one, as keyword arguments, and gives a
    list of one number: 1 or more is right, less is wrong, `None` undecided.
    """

    name: str
    function: Callable[..., Any]
    prompt: str
    columns: dict[str, Any]


def reward_function(name: str, field: str = "benchmarks") -> Callable[..., Any]:
    """The function at `package.module:function`, from the working directory too."""
    module, _, attribute = name.partition(":")
    try:
        found = import_own(module, attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{field} has the reward function {name!r}, but {error}. Write package.module:function: a module that "
            "Python can import from here, and a function in it."
        ) from error
    if not callable(found):
        raise ValueError(
            f"{field} has the reward function {name!r}, which is of type {type(found).__name__}; it must be a function."
        )
    return found  # type: ignore[no-any-return]


def grade_by_reward(response: str, test: RewardTest) -> Verdict:
    """The function's word on one response. It is the user's own code, and runs in this process."""
    columns = {name: [value] for name, value in test.columns.items()}
    try:
        given = test.function(prompts=[test.prompt], completions=[response], **columns)
    except Exception as error:
        raise ValueError(
            f"the reward function {test.name!r} failed on the problem {test.prompt[:60]!r} with "
            f"{type(error).__name__}: {error}. Fix it and repeat the command: the responses are kept."
        ) from error
    if not isinstance(given, list | tuple) or len(given) != 1 or not isinstance(given[0], int | float | None):
        raise ValueError(
            f"the reward function {test.name!r} gave {given!r:.60} for one response; it must return a list with one "
            "number or None."
        )
    (reward,) = given
    if reward is None:
        return Verdict(UNDECIDED, why="the reward function returned None")
    if reward >= 1:
        return Verdict(RIGHT, details={"reward": reward})
    return Verdict(WRONG, why=f"reward {reward:g}", details={"reward": reward})
