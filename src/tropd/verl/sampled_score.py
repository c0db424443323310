"""The teacher's score of the sampled token, beyond its top-k.

verl asks vLLM for the teacher's top-k at every position. vLLM adds the token that stands there where its rank is above
k, and verl leaves it out. A trust region needs just that number: a token outside of the teacher's top-k is an outlier
more often than any other. So a slot k is added behind the k of each position, and holds the token and its score.

Row t of what the teacher sends is about token t + 1; the last row is about none, and holds zeros.
"""

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from .methods import LOSS_SETTINGS


def with_sampled(extract: Callable[..., None]) -> Callable[..., None]:
    """verl's `extract_prompt_logprobs`, with the sampled token behind the top-k."""

    @functools.wraps(extract)
    def extract_with_sampled(output: Any, num_prompt_logprobs: int | None, result_dict: dict[str, list]) -> None:
        extract(output, num_prompt_logprobs, result_dict)
        if not num_prompt_logprobs:  # nothing was asked for, or the sampled token alone
            return
        tokens = list(output.prompt_token_ids)[1:]
        for row, (token, scores) in enumerate(zip(tokens, output.prompt_logprobs[1:], strict=True)):
            result_dict["prompt_ids"][row].append(int(token))
            result_dict["prompt_logprobs"][row].append(scores[token].logprob)
        result_dict["prompt_ids"][-1].append(0)
        result_dict["prompt_logprobs"][-1].append(0.0)

    return extract_with_sampled


def is_ours(loss_config: Any) -> bool:
    """Is it a `TropdLossConfig`? Asked without importing verl."""
    return all(hasattr(loss_config, name) for name in (*LOSS_SETTINGS, "endings"))


def checked(ask: Callable[..., Awaitable[tuple[Any, Any]]]) -> Callable[..., Awaitable[tuple[Any, Any]]]:
    """verl's `compute_teacher_logprobs_single`: slot k is there for our losses, and taken away for all others."""

    @functools.wraps(ask)
    async def ask_and_check(self: Any, sequence_ids: list[int], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        ids, logps = await ask(self, sequence_ids, *args, **kwargs)
        settings = self.distillation_loss_config
        asked = settings.topk if settings.loss_settings.use_topk else 0
        if not asked:
            return ids, logps
        if not is_ours(settings):
            return ids[:, :asked], logps[:, :asked]
        if ids.shape[1] != asked + 1:
            raise RuntimeError(no_slot(ids.shape[1], asked))
        if ids[:-1, asked].tolist() != list(sequence_ids[1:]):
            raise RuntimeError("the teacher's server scored tokens other than those it was sent; r would be wrong.")
        return ids, logps

    return ask_and_check


def no_slot(columns: int, topk: int) -> str:
    """The sentence for scores without the sampled token's."""
    return (
        f"the teacher's scores have {columns} columns, but top-{topk} and the sampled token make {topk + 1}: the "
        "server runs without tropd. Install tropd on every node, look for `tropd (process …)` in the server's log, and "
        "use vLLM (distillation.teacher_models.teacher_model.inference.name=vllm): other engines leave the score out."
    )
