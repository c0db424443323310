"""Shared parts of served teachers: a client, and threads for concurrent requests."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch

from ...models.sampling import until_eos
from .http import Client

T = TypeVar("T")


class AskedTeacher(ABC):
    """A teacher that another process computes.

    Args:
        client: its servers.
        served_name: what the model is called there.
        name: what it is: its folder or Hub name, where the server tells.
        vocab_size: the ids below it can be read.
        context_length: tokens that a question may have; `None` where the server does not say.
        generation_config: of which the endings are read.
        device: where the scores go.
        concurrency: questions under way at once.
    """

    model = None

    def __init__(
        self,
        client: Client,
        served_name: str,
        *,
        name: str,
        vocab_size: int,
        context_length: int | None,
        generation_config: Any,
        device: torch.device,
        concurrency: int,
    ):
        self.client, self.served_name, self.name = client, served_name, name
        self.vocab_size, self.context_length = vocab_size, context_length
        self.generation_config, self.device = generation_config, device
        self._threads = ThreadPoolExecutor(concurrency, "teacher")

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
