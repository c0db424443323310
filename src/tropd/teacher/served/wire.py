"""vLLM with token ids: what is sent, and what of an answer can be believed.

Scores are asked of `/v1/completions`, or of `/inference/v1/generate` where the server has that (`--enable-scale-out`):
the same numbers, without the texts of k tokens a token, which are most of the server's work.

`prompt_logprobs` is a list as long as the prompt: `null`, then for each token a mapping from ids to log-probabilities,
k entries, or k + 1 where the token itself is not among the k. Both kinds of number are taken by their ids, never by
rank. −9999 is vLLM's −∞. Its `temperature` does not touch these numbers, whatever is sent.
"""

import math
from collections.abc import Sequence
from typing import Any

from .http import ServerRefused

COMPLETIONS, GENERATE, MODELS, TOKENIZE = "/v1/completions", "/inference/v1/generate", "/v1/models", "/tokenize"

NOTHING = -9000.0
"""vLLM writes −9999 where a probability is 0, since JSON has no infinity."""

SLACK = 1e-3
"""Nats by which rounding may lift a log-probability above 0."""

BYTES_AN_ENTRY = 300
"""Of an answer, for one id with its log-probability, rank and text, at most."""

Entries = dict[int, float]
"""Of one token: id → log-probability, nats."""


Question = tuple[str, dict[str, Any], int]
"""Path, body, and the most bytes that an answer can have."""


def scoring_question(model: str, token_ids: Sequence[int], k: int, is_lean: bool) -> Question:
    """Ask for the log-probabilities of a text, with the k likeliest beside each token."""
    size = 2**16 + len(token_ids) * (k + 2) * BYTES_AN_ENTRY
    sampling = {"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": k}  # vLLM takes no 0 of tokens
    if is_lean:
        own = {"token_ids": list(token_ids), "sampling_params": sampling | {"detokenize": False}}
        return GENERATE, {"model": model} | own, size
    return COMPLETIONS, {"model": model, "prompt": list(token_ids)} | sampling, size


def read_scores(answer: dict[str, Any], token_ids: Sequence[int], places: Sequence[int], k: int) -> list[Entries]:
    """What an answer says of the tokens at `places`, each with itself and at least `k` others or its like.

    Raises:
        ServerRefused: an answer that is not one to the question: nothing is made of it.
    """
    choice = _only_choice(answer)
    given = choice.get("prompt_logprobs", answer.get("prompt_logprobs"))
    if not isinstance(given, list):
        raise ServerRefused(
            "the server's answer has no prompt_logprobs, so it does not support them; it must be vLLM's "
            "OpenAI-compatible server"
        )
    if len(given) != len(token_ids):
        raise ServerRefused(f"the server gave {len(given)} prompt_logprobs for {len(token_ids)} tokens")
    found = []
    for place in places:
        entries = _read_entries(given[place])
        if token_ids[place] not in entries:
            raise ServerRefused(
                f"the server's prompt_logprobs {place} do not contain the token itself, {token_ids[place]}"
            )
        if len(entries) < k:
            raise ServerRefused(f"the server gave {len(entries)} of {k} log-probabilities for token {place}")
        found.append(entries)
    return found


def _read_entries(given: Any) -> Entries:
    try:
        entries = {int(token): float(entry["logprob"]) for token, entry in given.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ServerRefused(f"the server gave prompt_logprobs that cannot be read: {given!r:.200}") from error
    for token, logp in entries.items():
        if not logp <= SLACK or token < 0:
            raise ServerRefused(f"the server gave token {token} the impossible log-probability {logp}")
    return {token: -math.inf if logp <= NOTHING else logp for token, logp in entries.items()}


def writing_request(
    model: str,
    token_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    stop_ids: Sequence[int],
    seed: int | None,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
) -> dict[str, Any]:
    """Ask for a response; what the server's own generation_config says of the softmax is overruled."""
    return {
        "model": model,
        "prompt": list(token_ids),
        "max_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k or -1,  # which is all
        "min_p": min_p,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": list(stop_ids),
        "return_token_ids": True,
    } | ({} if seed is None else {"seed": seed})


def read_written(answer: dict[str, Any], max_new_tokens: int) -> list[int]:
    """The token ids of a response.

    Raises:
        ServerRefused: an answer without them.
    """
    ids = _only_choice(answer).get("token_ids")
    if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids) or len(ids) > max_new_tokens:
        raise ServerRefused("the server's answer has no token_ids of its response (return_token_ids of vLLM)")
    return ids


def read_models(answer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name → card of the models that a server offers.

    Raises:
        ServerRefused: an answer of another kind of server.
    """
    cards = answer.get("data")
    if not isinstance(cards, list) or not all(isinstance(c, dict) and isinstance(c.get("id"), str) for c in cards):
        raise ServerRefused(f"the server's {MODELS} lists no models; it must be an OpenAI-compatible server")
    return {card["id"]: card for card in cards}


def _only_choice(answer: dict[str, Any]) -> dict[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise ServerRefused(f"the server's answer has no single choice: {str(answer)[:200]}")
    return choices[0]
