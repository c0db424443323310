"""vLLM through TRL: in the student's precision, asked row by row, and ended in time.

TRL asks vLLM for one budget and one stream of draws for a whole batch. A rollout that continues a teacher's prefix may
write only what the prefix leaves of the budget, and draws that depend on the batch would differ in a resumed run.
vLLM draws a request that has a seed with a generator of its own, so a seed made of (run, step, row, position, stream)
gives a row the same draws in any batch, as far as its kernels give the same logits in any batch: on a CPU they do; on a
GPU the batch decides which kernels run, and logits differ by rounding.
"""

import json
import logging
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object
from trl.generation import vllm_generation
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import grpo_trainer

from ...models.hidden_states import replaced
from ...objective.randomness import addressed_uniforms
from .vllm_release import WHOLE_PROMPTS, installed_release

logger = logging.getLogger(__name__)

CONCURRENCY = 64
"""Requests to a server at once; it batches them itself."""

OLDEST, NEWEST = (0, 22), (0, 32)
"""Releases of vLLM: what TRL 1.16 supports begins with the first, and the second is the newest that was tried here."""

CONNECT_SECONDS = 10.0


def check_version() -> None:
    """Refuse a vLLM that TRL cannot drive; warn of a newer one that is untested.

    Raises:
        ValueError: with the release, and what to install.
    """
    package = installed_release()
    if package is None:
        return  # TRL says that there is none
    name, found = package
    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:2])
    if numbers < OLDEST:
        raise ValueError(
            f"use_vllm is True, and {name} {found} is installed, which TRL does not support. Install a release from "
            f"{'.'.join(map(str, OLDEST))} to {'.'.join(map(str, NEWEST))} (docs/engines.md)."
        )
    if numbers > NEWEST:
        logger.warning("%s %s is newer than the releases that tropd was tested with (up to 0.32).", name, found)


@contextmanager
def engines_of_ours(compute_dtype: str | None, timeout: float) -> Iterator[None]:
    """Inside, TRL's trainer builds a `StudentEngine` where it would build its own.

    It computes in `compute_dtype`, such as `bfloat16`, or in that of the student's weights, and waits for an answer of
    a server at most `timeout` seconds.
    """
    ours = partial(StudentEngine, compute_dtype=compute_dtype, timeout=timeout)
    with replaced(grpo_trainer, "VLLMGeneration", ours):
        yield


class EngineUnavailable(Exception):
    """The engine does not start, or its server cannot be used; the cause says why."""


class StudentEngine(VLLMGeneration):
    """TRL's engine in the student's precision, with a time limit on every answer of a server; see `engines_of_ours`.

    Attributes:
        dtype: in which the engine computes; `None` where this process has not learned it from a server.
        version: vLLM's; the same.
    """

    def __init__(self, *, compute_dtype: str | None, timeout: float, **settings: Any):
        self._compute_dtype, self._timeout = compute_dtype, timeout
        self.dtype: str | None = None
        self.version: str | None = None
        super().__init__(**settings)

    def _init_vllm(self) -> None:
        try:
            self._start()
        except (OSError, NotImplementedError, RuntimeError) as error:  # TRL's, for a server and for a CPU
            raise EngineUnavailable from error

    def describe(self) -> dict[str, str | None]:
        """What writes the rollouts, for the record of the run."""
        return {"name": "vllm", "mode": self.mode, "version": self.version, "dtype": self.dtype}

    def _start(self) -> None:
        if self.mode == "server":
            if self.accelerator.is_main_process:
                self._check_server_answers()
            super()._init_vllm()
            client = getattr(self, "vllm_client", None)
            if client is not None:
                send = client.session.request
                client.session.request = partial(send, timeout=(CONNECT_SECONDS, self._timeout))
                self._read_server(client)
            return
        package = installed_release()
        self.version = package and package[1]
        weights = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        self.dtype = self._compute_dtype or str(weights).removeprefix("torch.")
        engine = getattr(vllm_generation, "LLM", None)  # absent where vLLM is not installed, which TRL says
        if engine is None:
            super()._init_vllm()
            return
        changes: dict[str, Any] = {"dtype": self.dtype}
        if self.accelerator.device.type == "cpu":
            keep_weights_loadable()
            changes |= WHOLE_PROMPTS
        with replaced(vllm_generation, "LLM", partial(_build, engine, changes)):
            super()._init_vllm()

    @property
    def _url(self) -> str:
        return self.server_base_url or f"http://{self.server_host}:{self.server_port}"

    def _check_server_answers(self) -> None:
        """TRL asks without a time limit; a server that accepts and says nothing would block the run for ever."""
        until = time.monotonic() + self.server_timeout
        while True:
            try:
                with urllib.request.urlopen(f"{self._url}/health", timeout=CONNECT_SECONDS):
                    return
            except OSError as error:
                if time.monotonic() >= until:
                    raise ConnectionError(
                        f"no vLLM server answers at {self._url} within {self.server_timeout:g} s "
                        f"(vllm_server_timeout): {error}"
                    ) from error
                time.sleep(1.0)

    def _read_server(self, client: Any) -> None:
        """Its dtype and version, and whether it reports the softmax that it draws from.

        A server reports log-probabilities of the softmax before the temperature, unless it is configured otherwise.
        """
        model = client.get_server_info()["model_config"]
        self.dtype = str(model["dtype"]).removeprefix("torch.")
        with urllib.request.urlopen(f"{self._url}/version", timeout=CONNECT_SECONDS) as answer:
            self.version = json.loads(answer.read(2**16))["version"]
        mode = model["logprobs_mode"]
        if self.temperature != 1.0 and mode != "processed_logprobs":
            raise ValueError(
                f"temperature is {self.temperature}, but the vLLM server reports log-probabilities at temperature 1 "
                f"(--logprobs-mode {mode}). Restart it with --logprobs-mode processed_logprobs."
            )

    @contextmanager
    def asking_by_row(self, rows: Sequence["RowRequest"]) -> Iterator[None]:
        """Inside, `generate` gives each row its own budget and seed: this process's, in the order of its prompts."""
        if self.mode == "server":
            owner, every_row = getattr(self, "vllm_client", None), gather_object(list(rows))
            ask = partial(_ask_server, owner, every_row)
        else:
            owner, every_row = self.llm, self._rows_of_group(rows)
            ask = partial(_ask_engine, owner.generate, every_row)
        if owner is None:  # the first process asks the server for all of them
            yield
            return
        with replaced(owner, "generate", ask):
            yield

    def _rows_of_group(self, rows: Sequence["RowRequest"]) -> list["RowRequest"]:
        """The rows of all processes that hold parts of one engine, as TRL gathers their prompts."""
        if self.tensor_parallel_size == 1:
            return list(rows)
        parts: list[list[RowRequest]] = [[] for _ in range(self.tensor_parallel_size)]
        torch.distributed.all_gather_object(parts, list(rows), group=self.tp_group)
        return [row for part in parts for row in part]

    def close(self) -> None:
        """End the engine; it holds a process group that must not end before it."""
        engine = self.__dict__.pop("llm", None)
        if engine is not None:
            engine.llm_engine.engine_core.shutdown()


def _build(engine: Any, changes: dict[str, Any], **settings: Any) -> Any:
    """TRL's engine with settings of ours; one that reads whole prompts must be able to read the longest."""
    settings |= changes
    longest, at_once = settings.get("max_model_len"), settings.get("max_num_batched_tokens")
    if not settings.get("enable_chunked_prefill", True) and longest and at_once:
        settings["max_num_batched_tokens"] = max(longest, at_once)
    return engine(**settings)


def keep_weights_loadable() -> None:
    """Keep vLLM on a CPU from packing weights for its kernels, which no update of the student could reach.

    It would leave empty parameters, and packed copies of the old weights beside them.
    """
    from vllm import _custom_ops
    from vllm.model_executor.layers import utils

    _custom_ops._supports_onednn = False
    utils.check_cpu_sgl_kernel = lambda *_: False


@dataclass(frozen=True)
class RowRequest:
    """What one row asks for."""

    max_tokens: int  # the most that it may write
    seed: int | None  # of its draws; `None` leaves them to the engine's own stream


def row_seed(seed: int, step: int, row: int, position: int, stream: int) -> int:
    """53 bits that depend on where a row's next token stands, and on nothing else.

    >>> row_seed(0, 7, 3, 0, 2) == row_seed(0, 7, 3, 0, 2) != row_seed(0, 7, 3, 1, 2)
    True
    """
    return int(addressed_uniforms(seed, step, [row], position + 1, stream)[0, position].item() * 2**53)


def _ask_engine(generate: Any, rows: list[RowRequest], prompts: list[Any], sampling_params: Any, **options: Any) -> Any:
    """`vllm.LLM.generate` with parameters for each prompt."""
    return generate(prompts, sampling_params=[_for_row(sampling_params, row) for row in rows], **options)


def _for_row(shared: Any, row: RowRequest) -> Any:
    own = shared.clone()
    own.max_tokens = row.max_tokens
    if row.seed is not None:
        own.seed = row.seed
    return own


def _ask_server(
    client: Any, rows: list[RowRequest], prompts: list[list[int]], n: int = 1, **settings: Any
) -> dict[str, Any]:
    """`VLLMClient.generate` in one request for each row; a prompt's `n` rows are side by side."""
    ask = type(client).generate

    def one(number: int) -> dict[str, Any]:
        row = rows[number]
        own = settings | {"max_tokens": row.max_tokens}
        if row.seed is not None:
            own["generation_kwargs"] = {**(settings.get("generation_kwargs") or {}), "seed": row.seed}
        return ask(client, prompts=[prompts[number // n]], n=1, **own)  # type: ignore[no-any-return]

    with ThreadPoolExecutor(min(CONCURRENCY, len(rows))) as pool:
        answers = list(pool.map(one, range(len(rows))))
    joined = {name: [item for answer in answers for item in answer[name] or []] for name in answers[0]}
    return joined | {"prompt_ids": list(prompts)}
