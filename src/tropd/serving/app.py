"""A teacher as a web application: its scores and its responses, for trainers elsewhere.

One question is computed at a time, in the order in which they came. Nothing is kept of a question.
"""

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..models.sampling import sample
from ..rollout.engine.noise import AddressedNoise, decoding_through, drawing_without_address
from ..teacher.local import LocalTeacher, TeacherScores, TopKRequest
from ..teacher.served.connect import OWN_CARD
from ..teacher.served.tensors import (
    MODELS,
    SCORE,
    TOKENIZE,
    VERSION,
    WRITE,
    read_question,
    write_answer,
)

BYTES_A_TOKEN = 16
"""Of a question, at most: an id, a mark and a bound, or an id in JSON."""

SMALL = 2**20
"""Bytes of what a question has beside its tokens, at most."""

BODY_SECONDS = 60.0
"""In which a question has to have come."""

Handler = Callable[[Request], Awaitable[Response]]


class Refused(ValueError):
    """A question that is not answered.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, sentence: str, status: int = 400):
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class Served:
    """What is served.

    Attributes:
        teacher: the model.
        tokenizer: its own.
        name: what it is called.
        folder: where it lies here, or its name on the Hub.
        eos_ids: what ends its responses.
        key: that each question has to bring; `None` where none is wanted.
        most_tokens: of a question.
    """

    teacher: LocalTeacher
    tokenizer: Any
    name: str
    folder: str
    eos_ids: list[int]
    key: str | None
    most_tokens: int


def make_app(served: Served) -> Starlette:
    """The application, for any ASGI server."""
    turn, fingerprint = asyncio.Lock(), served.teacher.fingerprint()

    async def compute(request: Request, function: Callable[[], Any]) -> Any:
        if request.query_params.get("model") != fingerprint:
            raise Refused(
                f"{served.name} now has a different model than at the beginning of this run: its weights differ. Serve "
                "that model again",
                409,
            )
        async with turn:
            if await request.is_disconnected():  # it has waited too long, and asks again or not
                raise Refused("the client has disconnected", 499)
            return await run_in_threadpool(function)

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_card(served, fingerprint)]})

    async def tokenize(request: Request) -> Response:
        body = _fields(await _body(request, SMALL), {"prompt": str})
        ids = served.tokenizer(body["prompt"], add_special_tokens=bool(body.get("add_special_tokens", True)))
        return JSONResponse({"tokens": ids["input_ids"]})

    async def score(request: Request) -> Response:
        raw = await _body(request, SMALL + BYTES_A_TOKEN * served.most_tokens)
        answer = await compute(request, lambda: write_answer(score_question(served, raw)))
        return Response(answer, media_type="application/octet-stream")

    async def write(request: Request) -> Response:
        raw = await _body(request, SMALL + BYTES_A_TOKEN * served.most_tokens)
        return JSONResponse({"responses": await compute(request, lambda: write_responses(served, raw))})

    routes = [(MODELS, models, "GET"), (TOKENIZE, tokenize, "POST"), (SCORE, score, "POST"), (WRITE, write, "POST")]
    return Starlette(
        routes=[Route(path, _answered(handler, served), methods=[method]) for path, handler, method in routes]
    )


def _answered(handler: Handler, served: Served) -> Handler:
    """`handler` for whoever has the key, with a sentence where it fails."""

    async def answer(request: Request) -> Response:
        try:
            _check_key(request, served.key)
            return await handler(request)
        except Refused as error:
            return _failure(str(error), error.status)
        except ClientDisconnect:
            return _failure("the client has disconnected", 499)
        except torch.OutOfMemoryError as error:
            return _failure(f"out of memory: {error}. Lower teacher_batch_size", 413)
        except ValueError as error:
            return _failure(f"the request cannot be answered: {error}", 400)

    return answer


def _failure(sentence: str, status: int) -> Response:
    return JSONResponse({"error": {"message": sentence}}, status)


def _check_key(request: Request, key: str | None) -> None:
    given = request.headers.get("authorization", "").encode()
    if key is not None and not hmac.compare_digest(given, f"Bearer {key}".encode()):
        raise Refused("Unauthorized", 401)


async def _body(request: Request, most: int) -> bytes:
    """A question's bytes, as many as one can have and no more."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise Refused(
                        f"the request is longer than {most} bytes; start the server with more --max_tokens", 413
                    )
                parts.append(part)
    except TimeoutError as error:
        raise Refused(f"the request did not arrive within {BODY_SECONDS:g} s", 408) from error
    return b"".join(parts)


def _card(served: Served, fingerprint: str) -> dict[str, Any]:
    """What is told of the model: as vLLM tells it, and what only this server has."""
    teacher = served.teacher
    own = {
        "version": VERSION,
        "fingerprint": fingerprint,
        "vocab_size": teacher.vocab_size,
        "context_length": teacher.context_length,
        "eos_token_id": served.eos_ids,
        "most_tokens": served.most_tokens,
        "dtype": str(teacher.model.dtype).removeprefix("torch."),
    }
    return {"id": served.name, "object": "model", "root": served.folder, OWN_CARD: own}


# ---------------------------------------------------------------------- what is computed


def score_question(served: Served, raw: bytes) -> TeacherScores:
    """The very pass that the trainer would make with this teacher.

    Raises:
        ValueError: a question that is none, or larger than the server or its model takes.
    """
    question, teacher = read_question(raw), served.teacher
    rows = zip(question.contexts, question.responses, strict=True)
    _check_size(served, [len(context) + len(response) for context, response in rows])
    if question.pad_id >= teacher.vocab_size or question.k > teacher.vocab_size:
        raise ValueError(f"the model's vocabulary has {teacher.vocab_size} entries")
    return teacher.score(
        question.contexts,
        question.responses,
        question.scored,
        pad_id=question.pad_id,
        temperature=question.temperature,
        topk=TopKRequest(question.k, question.vocab_limit, question.wants) if question.k else None,
        endings=question.endings,
    )


def write_responses(served: Served, raw: bytes) -> list[list[int]]:
    """One response to each context, drawn as a trainer's own teacher draws it.

    Raises:
        ValueError: a question that is none, or larger than the server or its model takes.
    """
    kinds = {"contexts": list, "eos_ids": list, "pad_id": int, "max_new_tokens": int, "temperature": float | int}
    body, teacher = _fields(raw, kinds), served.teacher
    contexts, longest, limit, draws = (
        body["contexts"],
        body["max_new_tokens"],
        body.get("vocab_limit"),
        body.get("draws"),
    )
    known = all(isinstance(row, list) and row for row in contexts)
    ids = [token for row in contexts for token in row] if known else []
    ids += [*body["eos_ids"], body["pad_id"], *([] if limit is None else [limit])]
    if not contexts or not known or not all(type(i) is int and i >= 0 for i in ids) or longest < 1 or limit == 0:
        raise ValueError("its contexts, endings or length are invalid")
    if not max(ids[: sum(map(len, contexts))]) < teacher.vocab_size or body["pad_id"] >= teacher.vocab_size:
        raise ValueError(f"the model's vocabulary has {teacher.vocab_size} entries")
    if not 0 <= body["temperature"] < float("inf"):
        raise ValueError("its temperature is invalid")
    _check_size(served, [len(context) + longest for context in contexts])
    model = teacher.model
    with drawing_without_address(model) if draws is None else decoding_through(model, _noise(draws, len(contexts))):
        return sample(
            model,
            contexts,
            pad_id=body["pad_id"],
            eos_ids=body["eos_ids"],
            max_new_tokens=longest,
            temperature=body["temperature"],
            vocab_limit=limit,
        )


def _noise(draws: Any, rows: int) -> AddressedNoise:
    if not isinstance(draws, dict) or not isinstance(draws.get("rows"), list) or len(draws["rows"]) != rows:
        raise ValueError("its draws do not have one row for each context")
    numbers = [draws.get("seed"), draws.get("step"), draws.get("stream"), *draws["rows"]]
    if not all(type(number) is int and 0 <= number < 2**64 for number in numbers):
        raise ValueError("its draws have invalid numbers")
    return AddressedNoise(draws["seed"], draws["step"], draws["stream"], [(row, 0) for row in draws["rows"]])


def _check_size(served: Served, lengths: list[int]) -> None:
    """Refuse rows of more tokens than the server takes together, or the model one by one."""
    if sum(lengths) > served.most_tokens:
        raise ValueError(
            f"it has {sum(lengths)} tokens, but the server accepts {served.most_tokens} at once (--max_tokens)"
        )
    limit = served.teacher.context_length
    if limit is not None and max(lengths) > limit:
        raise ValueError(f"a row has {max(lengths)} tokens, but the model reads at most {limit}")


def _fields(raw: bytes, kinds: dict[str, Any]) -> dict[str, Any]:
    """The fields of a JSON object.

    Raises:
        ValueError: it is none, or a field is missing or of another kind.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not JSON") from error
    wrong = [n for n, kind in kinds.items() if not isinstance(body, dict) or not isinstance(body.get(n), kind)]
    if wrong:
        raise ValueError(f"its field {wrong[0]!r} is missing, or of the wrong type")
    return body
