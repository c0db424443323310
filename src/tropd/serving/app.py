"""A teacher as a web application: its scores and its responses, for trainers elsewhere.

One question is computed at a time, in the order in which they came. Nothing is kept of a question.
"""

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..models.sampling import sample
from ..rollout.engine.noise import AddressedNoise, decoding_through, drawing_without_address
from ..teacher.local import LocalTeacher, TeacherScores, TopKRequest
from ..teacher.served.connect import OWN_CARD
from ..teacher.served.tensors import MODELS, SCORE, TOKENIZE, VERSION, WRITE, read_question, write_answer

BYTES_A_TOKEN = 16
"""Of a question, at most: an id, a mark and a bound, or an id in JSON."""

SMALL = 2**20
"""Bytes of what a question has beside its tokens, at most."""

BODY_SECONDS = 60.0
"""In which a question has to have come."""

Count = Annotated[int, Field(ge=0, lt=2**64)]


class Text(BaseModel):
    """What `/tokenize` is asked."""

    prompt: str
    add_special_tokens: bool = True


class Draws(BaseModel):
    """Where the draws of each context are addressed."""

    model_config = ConfigDict(strict=True)
    seed: Count
    step: Count
    stream: Count
    rows: list[Count]

    def noise(self) -> AddressedNoise:
        return AddressedNoise(self.seed, self.step, self.stream, [(row, 0) for row in self.rows])


class Writing(BaseModel):
    """What is asked for responses; see `AskedTeacher.sample`."""

    model_config = ConfigDict(strict=True)
    contexts: Annotated[list[Annotated[list[Count], Field(min_length=1)]], Field(min_length=1)]
    eos_ids: list[Count]
    pad_id: Count
    max_new_tokens: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    vocab_limit: Annotated[int, Field(ge=1)] | None = None
    draws: Draws | None = None


Body = TypeVar("Body", Text, Writing)
Handler = Callable[[Request], Awaitable[Response]]


class Refused(ValueError):
    """A question that is not answered."""

    def __init__(self, sentence: str, status: int = 400):
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class Served:
    """What is served: the model and its files, how it is called and where it lies, and the key that each question has
    to bring."""

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
                f"{served.name} now has a different model than when this run began: its weights differ. Serve "
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
        asked = _read(Text, await _body(request, SMALL))
        ids = served.tokenizer(asked.prompt, add_special_tokens=asked.add_special_tokens)
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
            given = request.headers.get("authorization", "").encode()
            if served.key is not None and not hmac.compare_digest(given, f"Bearer {served.key}".encode()):
                raise Refused("Unauthorized", 401)
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
    """The very pass that the trainer would make with this teacher."""
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
    """One response to each context, drawn as a trainer's own teacher draws it."""
    asked, teacher = _read(Writing, raw), served.teacher
    contexts, longest, draws = asked.contexts, asked.max_new_tokens, asked.draws
    if max(map(max, contexts)) >= teacher.vocab_size or asked.pad_id >= teacher.vocab_size:
        raise ValueError(f"the model's vocabulary has {teacher.vocab_size} entries")
    if draws is not None and len(draws.rows) != len(contexts):
        raise ValueError("its draws do not have one row for each context")
    _check_size(served, [len(context) + longest for context in contexts])
    model = teacher.model
    with drawing_without_address(model) if draws is None else decoding_through(model, draws.noise()):
        return sample(
            model,
            contexts,
            pad_id=asked.pad_id,
            eos_ids=asked.eos_ids,
            max_new_tokens=longest,
            temperature=asked.temperature,
            vocab_limit=asked.vocab_limit,
        )


def _check_size(served: Served, lengths: list[int]) -> None:
    """Refuse rows of more tokens than the server takes together, or the model one by one."""
    if sum(lengths) > served.most_tokens:
        raise ValueError(
            f"it has {sum(lengths)} tokens, but the server accepts {served.most_tokens} at once (--max_tokens)"
        )
    limit = served.teacher.context_length
    if limit is not None and max(lengths) > limit:
        raise ValueError(f"a row has {max(lengths)} tokens, but the model reads at most {limit}")


def _read(kind: type[Body], raw: bytes) -> Body:
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        fault = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, fault['loc'])) or 'it'}: {fault['msg']}") from error
