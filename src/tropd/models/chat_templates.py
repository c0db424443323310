"""Chat templates are programs: one that does not end, or uses too much memory, is stopped with a message."""

import resource
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

SECONDS, SECONDS_A_CONVERSATION = 20.0, 0.05
"""Processor time in which a template renders one conversation, and what each further one adds."""
MEMORY = 4 * 2**30
"""Bytes that a process may take while a template renders."""


class TemplateStopped(ValueError):
    """A chat template was stopped before it had rendered its messages."""


def render(tokenizer: Any, messages: Sequence[Any], **options: Any) -> Any:
    """`tokenizer.apply_chat_template(messages, **options)`, within bounds.

    Raises:
        TemplateStopped: it takes more time or memory than a template can need, or recurses without end.
    """
    several = bool(messages) and not isinstance(messages[0], dict)
    with _bounded(tokenizer, len(messages) if several else 1):
        return tokenizer.apply_chat_template(messages, **options)


class _TimeIsUp(BaseException):
    """Not an `Exception`, so that no handler on the way takes it for one of its own."""


@contextmanager
def _bounded(tokenizer: Any, conversations: int) -> Iterator[None]:
    seconds = SECONDS + SECONDS_A_CONVERSATION * conversations
    whose = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
    start = f"the chat template of {whose}"
    advice = "Correct it (chat_template.jinja in the model's folder), or take a model from another source."
    try:
        with _time(seconds), _memory():
            yield
    except _TimeIsUp:
        raise TemplateStopped(f"{start} was stopped after {seconds:.0f} s without an end. {advice}") from None
    except (MemoryError, OverflowError, RecursionError) as error:
        why = " ".join(str(error).split())
        raise TemplateStopped(
            f"{start} exceeds the available resources ({type(error).__name__}{f': {why:.200}' if why else ''}). "
            f"{advice}"
        ) from None


@contextmanager
def _time(seconds: float) -> Iterator[None]:
    """Raise `_TimeIsUp` behind so much processor time. Signals, Ctrl-C among them, go where they went.

    Only the main thread can be interrupted; elsewhere, and inside another bound, nothing is done.
    """
    alone = threading.current_thread() is threading.main_thread() and not any(signal.getitimer(signal.ITIMER_VIRTUAL))
    if not alone:
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise _TimeIsUp

    before = signal.signal(signal.SIGVTALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def _memory() -> Iterator[None]:
    """Let the process take so much more address space and no more, where no GPU maps its memory there."""
    statm, limits = Path("/proc/self/statm"), resource.getrlimit(resource.RLIMIT_AS)
    if torch.cuda.is_initialized() or not statm.is_file():
        yield
        return
    most = int(statm.read_text().split()[0]) * resource.getpagesize() + MEMORY
    if limits[0] != resource.RLIM_INFINITY:
        most = min(most, limits[0])
    try:
        with suppress(ValueError):  # a hard limit below: it bounds the process already
            resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
