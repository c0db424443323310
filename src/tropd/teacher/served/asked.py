"""Shared parts of served teachers: a client, and threads for concurrent requests."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypeVar

import torch

from ...models.sampling import until_eos
from .http import Client

T = TypeVar("T")


@dataclass(eq=False, repr=False)
class AskedTeacher(ABC):
    """A teacher that another process computes."""

    client: Client  # its servers
    served_name: str  # what the model is called there
    _: KW_ONLY
    name: str  # what it is: its folder or Hub name, where the server tells
    vocab_size: int  # the ids below it can be read
    context_length: int | None  # tokens that a question may have; `None` where the server does not say
    generation_config: Any  # of which the endings are read
    device: torch.device  # where the scores go
    concurrency: int  # questions under way at once
    model = None

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(self.concurrency, "teacher")

    @abstractmethod
    def fingerprint(self) -> Any:
        """By which the model is known again."""

    @abstractmethod
    def sample(self, *args: Any, **settings: Any) -> list[list[int]]:
        """As `models.sampling.sample`, with draws of each row's own, whatever else the server does beside."""

    def write(self, contexts: Sequence[list[int]], *, eos_ids: Sequence[int], **settings: Any) -> list[list[int]]:
        """As `LocalTeacher.write`: what `sample` gives, without the first EOS and what follows."""
        return [until_eos(response, eos_ids) for response in self.sample(contexts, eos_ids=eos_ids, **settings)]

    def _ask_all(self, ask: Callable[[Any], T], items: Sequence[Any], sizes: Sequence[int]) -> list[T]:
        """`ask` of each item, the largest first; where one fails for good, the others are given up."""
        order = sorted(range(len(items)), key=lambda number: -sizes[number])
        asked = {number: self._threads.submit(ask, items[number]) for number in order}
        try:
            done, _ = wait(asked.values(), return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            for future in asked.values():
                future.cancel()
            self.client.stop()
            wait(asked.values())
            self.client.go_on()
            raise
        return [asked[number].result() for number in range(len(items))]
