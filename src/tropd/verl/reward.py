"""A reward of nothing: distillation needs none, and verl asks for one in every run."""

from typing import Any


def no_reward(data_source: Any, solution_str: str, ground_truth: Any, extra_info: Any = None, **rest: Any) -> float:
    """0.0, for `reward.custom_reward_function`.

    >>> no_reward("tropd", "5", "7")
    0.0
    """
    return 0.0
