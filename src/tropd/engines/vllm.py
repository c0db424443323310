"""vLLM in this process as an engine: each response with a seed of its own, so that batches decide nothing."""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

from ..models.files import ModelFiles
from ..rollout.engine.noise import AddressedNoise
from ..rollout.engine.vllm_release import WHOLE_PROMPTS, installed_release
from .drawing import Drawing, Responses


def check_installed() -> None:
    """Refuse `engine: vllm` where there is no vLLM, before anything is read."""
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "engine is 'vllm', but vLLM is not installed. Install it with: pip install -c constraints-vllm.txt "
            "'tropd[vllm]' (docs/engines.md), or remove engine."
        )


class VllmWriter:
    """Writes with `vllm.LLM`; dtype `auto` is the stored one, and not vLLM's own, which makes bf16 of float32."""

    def __init__(
        self,
        files: ModelFiles,
        role: str,
        *,
        dtype: str,
        max_model_len: int,
        gpu_memory_utilization: float,
        tensor_parallel_size: int,
        enforce_eager: bool,
        trust_remote_code: bool,
    ):
        check_installed()
        dtype = _stored_dtype(files, role) if dtype == "auto" else dtype
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        from vllm import LLM, SamplingParams
        from vllm.platforms import current_platform

        self._params, self._settings = SamplingParams, {"dtype": dtype, "tensor_parallel_size": tensor_parallel_size}
        try:
            self._engine = LLM(
                model=files.name,
                max_model_len=max_model_len,
                gpu_memory_utilization=gpu_memory_utilization,
                enforce_eager=enforce_eager,
                trust_remote_code=trust_remote_code,
                skip_tokenizer_init=True,  # token ids go in and come out
                generation_config="vllm",  # nothing of the model's own reshapes the softmax
                disable_log_stats=True,
                **(WHOLE_PROMPTS if current_platform.is_cpu() else {}),
                **self._settings,
            )
        except Exception as error:
            raise ValueError(
                f"{role} is {files.name!r}, but vLLM cannot load it ({_in_a_line(error)}). docs/engines.md lists the "
                "releases that work together; vllm_gpu_memory_utilization limits its share of a GPU."
            ) from error
        self._head_rows = self._engine.model_config.get_vocab_size()

    def write(self, contexts: Sequence[list[int]], noise: AddressedNoise, drawing: Drawing) -> Responses:
        prompts = [{"prompt_token_ids": list(context)} for context in contexts]
        params = [self._params(seed=seed, **self._asked(drawing)) for seed in noise.address.seeds()]
        try:
            answers = self._engine.generate(prompts, sampling_params=params, use_tqdm=False)
        except Exception as error:
            raise ValueError(
                f"vLLM failed while it generated ({_in_a_line(error)}). The output so far is kept; the same command "
                "resumes."
            ) from error
        return [list(answer.outputs[0].token_ids) for answer in answers]

    def _asked(self, drawing: Drawing) -> dict[str, Any]:
        asked: dict[str, Any] = {
            "max_tokens": drawing.max_new_tokens,
            "temperature": drawing.temperature,
            "stop_token_ids": list(drawing.eos_ids),
            "detokenize": False,
            **drawing.reshaping(),
        }
        if drawing.vocab_limit < self._head_rows:
            asked["allowed_token_ids"] = list(range(drawing.vocab_limit))
        return asked

    def describe(self) -> dict[str, Any]:
        _, version = installed_release() or (None, None)  # one that was built from source may have no metadata
        return {"engine": "vllm", "version": version, **self._settings}

    def close(self) -> None:
        """End the engine's processes."""
        self._engine.llm_engine.engine_core.shutdown()


def _stored_dtype(files: ModelFiles, role: str) -> str:
    dtype = getattr(files.config.get_text_config(), "dtype", None) or getattr(files.config, "dtype", None)
    if dtype is None:
        raise ValueError(
            f"{role} is {files.name!r}, whose config.json does not name the dtype of its weights, and vLLM would "
            "assume bfloat16. Set dtype."
        )
    return str(dtype).removeprefix("torch.")


def _in_a_line(error: Exception) -> str:
    """The error's name and the beginning of its last line, which is where vLLM writes the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no reason given'}"[:300]
