"""What an engine is asked for: responses to contexts, each drawn by its address."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..rollout.engine.noise import AddressedNoise

Responses = list[list[int]]
"""Token ids of each response, up to and with the first ending."""


@dataclass(frozen=True)
class Drawing:
    """How a response is drawn.

    Ids from `vocab_limit` on are never drawn (a head padded further than the reader's); temperature 0 takes the
    likeliest token.
    """

    max_new_tokens: int
    eos_ids: tuple[int, ...]
    vocab_limit: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    def reshaping(self) -> dict[str, Any]:
        """What cuts the softmax; nothing does where the likeliest token is taken."""
        if self.temperature == 0:
            return {}
        asked = {"top_p": (self.top_p, 1.0), "top_k": (self.top_k, 0), "min_p": (self.min_p, 0.0)}
        return {name: value for name, (value, off) in asked.items() if value != off}


class Writer(Protocol):
    """An engine with a model: Transformers, vLLM in this process, or a server."""

    def write(self, contexts: Sequence[list[int]], noise: AddressedNoise, drawing: Drawing) -> Responses:
        """A response to each context, drawn with its address alone: the same in any batch, as far as logits are.

        Raises:
            ValueError: the engine failed; with what to do.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """What wrote, for the record of it."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...
