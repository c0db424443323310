"""Reward functions by name."""

import importlib
import os
import sys
from collections.abc import Callable


def reward_function(name: str) -> Callable:
    """A reward of `trl.rewards` by its name, or any function by its dotted path, from the working directory too.

    Raises:
        ValueError: there is no such function.
    """
    module, _, function = name.rpartition(".")
    module = module or "trl.rewards"
    if os.getcwd() not in sys.path:  # a console script starts without it, `python -m` with it
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"reward_funcs has {name!r}, but {error}. Name a function of trl.rewards, such as accuracy_reward, or a "
            "dotted path that Python can import from here, such as my_module.my_reward."
        ) from error
