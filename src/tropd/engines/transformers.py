"""Transformers as an engine: tropd's decoding loop where it can be used, and its addressed noise."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from ..models.files import ModelFiles, explained
from ..models.hidden_states import language_model_class
from ..models.sampling import sample
from ..rollout.engine.noise import AddressedNoise, decoding_through
from .drawing import Drawing, Responses


@contextmanager
def enough_memory(responses: int, model: Any) -> Iterator[None]:
    """Report that a batch of this size does not fit into memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"{responses} responses at once do not fit on {model.device} ({error}). Use a smaller batch_size, and a "
            "new output file, since a file keeps its batch size."
        ) from error


class TransformersWriter:
    """Writes with a model in this process, which is put in evaluation mode."""

    def __init__(self, model: Any):
        self.model = model.eval()

    @classmethod
    def load(
        cls, files: ModelFiles, role: str, *, dtype: str, use_cpu: bool, trust_remote_code: bool
    ) -> "TransformersWriter":
        """With the weights of a folder or Hub name, on the GPU where there is one."""
        with explained(files.name, role):
            loaded_by = language_model_class(files.config, f"{role} is {files.name!r}")
            model = loaded_by.from_pretrained(files.name, dtype=dtype, trust_remote_code=trust_remote_code)
        return cls(model.to("cuda" if torch.cuda.is_available() and not use_cpu else "cpu"))  # type: ignore[arg-type]

    def write(self, contexts: Sequence[list[int]], noise: AddressedNoise, drawing: Drawing) -> Responses:
        through = decoding_through(self.model, noise) if drawing.temperature > 0 else nullcontext()
        with enough_memory(len(contexts), self.model), through:
            return sample(
                self.model,
                contexts,
                max_new_tokens=drawing.max_new_tokens,
                eos_ids=drawing.eos_ids,
                pad_id=drawing.eos_ids[0],  # the tokenizer's own may lie beyond the embeddings
                temperature=drawing.temperature,
                vocab_limit=drawing.vocab_limit,
                **drawing.reshaping(),
            )

    def describe(self) -> dict[str, Any]:
        dtype = str(self.model.dtype).removeprefix("torch.")
        return {"engine": "hf", "device": str(self.model.device), "dtype": dtype}

    def close(self) -> None:
        """Nothing is held that the process would not give back."""
