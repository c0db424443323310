"""vLLM through TRL, asked row by row: each row has a budget and a seed of its own.

TRL asks vLLM for one budget and one stream of draws for a whole batch. A rollout that continues a teacher's prefix may
write what the prefix leaves of the budget and no more, and draws that depend on the batch are others in a resumed run.
vLLM draws a request that has a seed with a generator of its own, so a seed made of (run, step, row, position, stream)
gives a row the same draws in any batch, as far as its kernels give the same logits in any batch: on a CPU they do, on a
GPU the batch decides which kernels run, and logits differ by rounding.
"""

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object

from ..objective.randomness import addressed_uniforms

CONCURRENCY = 64
"""Requests to a server at once; it batches them itself."""


@dataclass(frozen=True)
class RowRequest:
    """What one row asks for.

    Attributes:
        max_tokens: it may write so many.
        seed: of its draws; `None` leaves them to the engine's own stream.
    """

    max_tokens: int
    seed: int | None


def row_seed(seed: int, step: int, row: int, position: int, stream: int) -> int:
    """53 bits that depend on where a row's next token stands, and on nothing else.

    >>> row_seed(0, 7, 3, 0, 2) == row_seed(0, 7, 3, 0, 2) != row_seed(0, 7, 3, 1, 2)
    True
    """
    return int(addressed_uniforms(seed, step, [row], position + 1, stream)[0, position].item() * 2**53)


@contextmanager
def asking_by_row(generation: Any, rows: Sequence[RowRequest]) -> Iterator[None]:
    """Inside, `generation.generate` of TRL gives each of this process's rows its own budget and seed.

    Args:
        generation: TRL's `VLLMGeneration`.
        rows: of this process, in the order of its prompts.
    """
    if generation.mode == "server":
        owner, every_row = getattr(generation, "vllm_client", None), gather_object(list(rows))
        ask = partial(_ask_server, owner, every_row)
    else:
        owner, every_row = generation.llm, _rows_of_group(generation, rows)
        ask = partial(_ask_engine, owner.generate, every_row)
    if owner is None:  # the first process asks the server for all of them
        yield
        return
    owner.generate = ask
    try:
        yield
    finally:
        del owner.generate


def _rows_of_group(generation: Any, rows: Sequence[RowRequest]) -> list[RowRequest]:
    """The rows of all processes that hold parts of one engine, as TRL gathers their prompts."""
    if generation.tensor_parallel_size == 1:
        return list(rows)
    parts: list[list[RowRequest]] = [[] for _ in range(generation.tensor_parallel_size)]
    torch.distributed.all_gather_object(parts, list(rows), group=generation.tp_group)
    return [row for part in parts for row in part]


def _ask_engine(generate: Any, rows: list[RowRequest], prompts: list[Any], sampling_params: Any, **options: Any) -> Any:
    """`vllm.LLM.generate` with parameters for each prompt."""
    return generate(prompts, sampling_params=[_for_row(sampling_params, row) for row in rows], **options)


def _for_row(shared: Any, row: RowRequest) -> Any:
    own = copy.copy(shared) if not hasattr(shared, "clone") else shared.clone()
    own.max_tokens = row.max_tokens
    if row.seed is not None:
        own.seed = row.seed
    return own


def _ask_server(
    client: Any, rows: list[RowRequest], prompts: list[list[int]], n: int = 1, **settings: Any
) -> dict[str, Any]:
    """`VLLMClient.generate` in one request for each row; a prompt's `n` rows lie side by side."""
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
