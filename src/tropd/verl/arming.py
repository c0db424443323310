"""What is changed in verl, in which releases, and how that is made known.

verl loads `plugin` at the end of `import verl`, in the driver and in every Ray worker, and hides a failure in a message
at level DEBUG. So lines are printed here: one where tropd is armed, one for each part of verl that was changed, and a
sentence where a release is refused. Then nothing is registered, and verl says that the loss mode is unknown.
"""

import importlib
import importlib.metadata
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

from .. import __version__
from .after_import import after_import
from .methods import verl_methods

KNOWN = "0.9"
"""Series of verl whose sources were read, and whose newest release is tested: 0.9.1."""

AGENT_LOOP = "tropd_prefix"

ARMED: dict[str, str] = {}
"""Modules of verl that were changed in this process, and what was done to each."""


def refusal(version: str) -> str | None:
    """Why this release of verl is not changed; `None` for a known one.

    >>> refusal("0.9.1") is None, refusal("0.10.0.dev0") is None
    (True, False)
    """
    if ".".join(version.split(".")[:2]) == KNOWN:
        return None
    return (
        f"verl {version} is not known to tropd {__version__}, which was tried with {KNOWN}.x; its losses are not "
        f"registered. Install verl {KNOWN}.x, or a tropd that knows this release."
    )


def say(text: str) -> None:
    """A line on standard error, where Ray collects it; with the process's number."""
    print(f"tropd (process {os.getpid()}): {text}", file=sys.stderr, flush=True)


def expect(function: Callable[..., Any], parameters: tuple[str, ...]) -> None:
    """Refuse to wrap a function that takes other parameters than the one whose source was read."""
    found = tuple(inspect.signature(function).parameters)
    if found != parameters:
        raise RuntimeError(
            f"tropd cannot be armed: {function.__module__}.{function.__qualname__} takes {', '.join(found)}, and not "
            f"{', '.join(parameters)}, as in verl {KNOWN}.x. Install an unchanged verl {KNOWN}.x."
        )


def _change_losses(losses: Any) -> None:
    from . import losses as ours

    expect(losses.compute_topk_loss, ("config", "distillation_config", "data", "student_logits", "data_format"))
    ours.register(losses, verl_methods())
    losses.compute_topk_loss = ours.direct_terms_or(losses.compute_topk_loss)


def _change_teacher_client(manager: ModuleType) -> None:
    from .sampled_score import checked

    client = manager.AsyncTeacherLLMServerManager
    known = ("multi_modal_data", "mm_processor_kwargs", "mm_processor_output", "routing_key")
    expect(client.compute_teacher_logprobs_single, ("self", "sequence_ids", *known))
    client.compute_teacher_logprobs_single = checked(client.compute_teacher_logprobs_single)


def _change_vllm_server(utils: Any) -> None:
    from .sampled_score import with_sampled

    expect(utils.extract_prompt_logprobs, ("output", "num_prompt_logprobs", "result_dict"))
    utils.extract_prompt_logprobs = with_sampled(utils.extract_prompt_logprobs)


def _change_agent_loops(agent_loop: ModuleType) -> None:
    loop = importlib.import_module(f"{__package__}.prefix_loop")
    agent_loop.register(AGENT_LOOP)(loop.PrefixAgentLoop)


CHANGES: dict[str, tuple[str, Callable[[ModuleType], None]]] = {
    "verl.trainer.distillation.losses": (f"losses registered: {', '.join(verl_methods())}", _change_losses),
    "verl.experimental.teacher_loop.teacher_manager": (
        "the teacher's scores are checked for the sampled token's",
        _change_teacher_client,
    ),
    "verl.workers.rollout.vllm_rollout.utils": (
        "vLLM's server sends the score of the sampled token beyond rank k",
        _change_vllm_server,
    ),
    "verl.experimental.agent_loop.agent_loop": (f"agent loop registered: {AGENT_LOOP}", _change_agent_loops),
}
"""Module of verl → what is said, and what is done to it."""


def _apply(name: str, module: ModuleType) -> None:
    words, change = CHANGES[name]
    change(module)
    ARMED[name] = words
    say(words)


def arm() -> None:
    """Change verl's modules as they are imported, in this process; refuse a release that is not known."""
    version = importlib.metadata.version("verl")
    reason = refusal(version)
    if reason is not None:
        say(reason)
        return
    say(f"tropd {__version__} is armed for verl {version}")
    for name in CHANGES:
        after_import(name, partial(_apply, name))


def arm_loudly() -> None:
    """`arm`, with a failure on standard error before verl hides it."""
    try:
        arm()
    except Exception:
        say("could not be armed, and verl would hide why:")
        traceback.print_exc()
        raise
