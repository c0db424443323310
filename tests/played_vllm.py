"""vLLM as far as tropd asks it: the requests are real, and what is written depends on a request's prompt and seed."""

import sys
import types
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import Any

import torch


@dataclass
class SamplingParams:
    """The fields that are asked for; another one is a mistake here as there."""

    seed: int
    max_tokens: int
    temperature: float
    stop_token_ids: list[int]
    detokenize: bool
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    allowed_token_ids: list[int] | None = None


@dataclass
class Played:
    """What was started and asked; `fails_in` is the number of a call of `generate` that raises, counted from 1."""

    head_rows: int
    ids: range
    fails_in: int = 0
    on_cpu: bool = True
    refuses: bool = False
    started: list[dict[str, Any]] = field(default_factory=list)
    calls: list[list[tuple[list[int], SamplingParams]]] = field(default_factory=list)
    ended: int = 0


def play(monkeypatch: Any, **settings: Any) -> Played:
    """Put a played vLLM in the place of an installed one."""
    played = Played(**settings)

    class LLM:
        def __init__(self, **given: Any):
            if played.refuses:
                raise RuntimeError("Engine core initialization failed.\nNo available memory for the cache blocks.")
            played.started.append(given)
            self.model_config = SimpleNamespace(get_vocab_size=lambda: played.head_rows)
            core = SimpleNamespace(shutdown=lambda: setattr(played, "ended", played.ended + 1))
            self.llm_engine = SimpleNamespace(engine_core=core)

        def generate(self, prompts: Any, sampling_params: Any, use_tqdm: bool) -> list[Any]:
            played.calls.append(
                [(one["prompt_token_ids"], own) for one, own in zip(prompts, sampling_params, strict=True)]
            )
            if len(played.calls) == played.fails_in:
                raise RuntimeError("EngineCore encountered an issue")
            return [
                SimpleNamespace(outputs=[SimpleNamespace(token_ids=_written(played.ids, *one))])
                for one in played.calls[-1]
            ]

    module = types.ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    platforms = types.ModuleType("vllm.platforms")
    platforms.current_platform = SimpleNamespace(is_cpu=lambda: played.on_cpu)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    monkeypatch.setattr("tropd.engines.vllm.installed_release", lambda: ("vllm", "0.32.0"))
    return played


def _written(ids: range, prompt: list[int], own: SamplingParams) -> list[int]:
    """Up to six tokens, and the first ending behind every other response."""
    draws = torch.Generator().manual_seed((own.seed if own.temperature else 0) + sum(prompt))
    length = int(torch.randint(1, 7, (1,), generator=draws))
    tokens = (torch.randint(len(ids), (length,), generator=draws) + ids.start).tolist()
    return [*tokens, *own.stop_token_ids[: own.seed % 2]][: own.max_tokens]
