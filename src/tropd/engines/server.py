"""A server as an engine: asked, waited for and known again as a served teacher is."""

from collections.abc import Sequence
from typing import Any

from ..rollout.engine.noise import AddressedNoise
from ..teacher.served.asked import AskedTeacher
from .drawing import Drawing, Responses


class ServerWriter:
    """Writes through an OpenAI-compatible server of vLLM's, or a `tropd serve`, which cuts no softmax."""

    def __init__(self, served: AskedTeacher, address: str):
        self.served, self.address = served, address

    def write(self, contexts: Sequence[list[int]], noise: AddressedNoise, drawing: Drawing) -> Responses:
        try:
            return self.served.sample(
                contexts,
                pad_id=drawing.eos_ids[0],  # the tokenizer's own may lie beyond the embeddings
                eos_ids=drawing.eos_ids,
                max_new_tokens=drawing.max_new_tokens,
                temperature=drawing.temperature,
                vocab_limit=drawing.vocab_limit,
                draws=noise.address,
                **drawing.reshaping(),
            )
        except ConnectionError as error:
            raise ValueError(f"{error}. The output so far is kept; the same command resumes.") from error

    def describe(self) -> dict[str, Any]:
        """See `Writer.describe`; the fingerprint by which the model is known again is in it."""
        served = self.served
        return {
            "engine": "server",
            "address": self.address,
            "model": served.served_name,
            "root": served.name,
            "fingerprint": served.fingerprint(),
        }

    def close(self) -> None:
        self.served.client.close()
