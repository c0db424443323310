"""A server that speaks as much of vLLM's API as is asked for, on loopback, and fails as a script says."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from tropd.teacher.local import LocalTeacher, TopKRequest

Scorer = Callable[[list[int], int], list[Any]]
"""(token ids, k) → vLLM's `prompt_logprobs`."""


def flat(ids: Sequence[int], k: int) -> list[Any]:
    """A model that gives every token −1, and the k ids from 10 on less and less."""
    listed = {10 + n: -2.0 - n for n in range(k)}
    return [None, *(as_entries({**listed, token: -1.0}) for token in ids[1:])]


def of_model(model: Any) -> Scorer:
    """As vLLM would answer with this model: k entries, or k + 1 where the token is not among them."""
    local = LocalTeacher(model)
    one_at_a_time = threading.Lock()

    def score(ids: list[int], k: int) -> list[Any]:
        def everywhere(logp, entropy, tokens):
            return torch.ones_like(logp, dtype=torch.bool)

        request = TopKRequest(k, local.vocab_size, everywhere) if k else None
        with one_at_a_time:
            found = local.score([ids[:1]], [ids[1:]], [[True] * (len(ids) - 1)], pad_id=0, topk=request)
        rows = zip(ids[1:], found.logp.tolist(), found.topk_ids.tolist(), found.topk_logp.tolist(), strict=True)
        if not k:
            return [None, *(as_entries({t: lp}) for t, lp in zip(ids[1:], found.logp.tolist(), strict=True))]
        return [
            None,
            *(as_entries(dict(zip(top, logps, strict=True)) | {token: logp}) for token, logp, top, logps in rows),
        ]

    return score


def as_entries(logps: dict[int, float]) -> dict[str, Any]:
    """As vLLM writes one token's; −∞ as −9999."""
    return {
        str(token): {"logprob": max(logp, -9999.0), "rank": 1, "decoded_token": "x"} for token, logp in logps.items()
    }


class FakeServer:
    """One server; a context manager.

    Attributes:
        script: what it does with the next questions that score or write, one after the other; then it answers.
        asked: their bodies, with the headers under `headers`.
        tokenize: text → ids for `/tokenize`; `None` where the server has none.
        is_lean: does it have `/inference/v1/generate`?
    """

    def __init__(
        self,
        scorer: Scorer = flat,
        *,
        vocab_size: int = 64,
        most_topk: int = 20,
        max_model_len: int = 256,
        name: str = "teacher",
        root: str = "some/teacher",
        tokenize: Callable[[str], list[int]] | None = None,
        writer: Callable[[dict[str, Any]], list[int]] | None = None,
        key: str | None = None,
        is_lean: bool = False,
    ):
        self.scorer, self.vocab_size, self.most_topk, self.max_model_len = scorer, vocab_size, most_topk, max_model_len
        self.name, self.root, self.tokenize, self.writer, self.key = name, root, tokenize, writer, key
        self.script: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self._lock, self._port, self.is_lean = threading.Lock(), 0, is_lean
        self._open: set[socket.socket] = set()

    def __enter__(self) -> "FakeServer":
        self.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Serve, at the port that it had before where there was one."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), _handler(self), bind_and_activate=False)
        self._server.daemon_threads, self._server.allow_reuse_address = True, True
        self._server.handle_error = lambda *request: None  # whoever asked has gone
        self._server.server_bind()
        self._server.server_activate()
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """As a process that is killed: nobody listens, and open connections break."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def scored(self) -> list[dict[str, Any]]:
        """The questions for scores of texts that are no probes."""
        return [body for body in self.asked if "prompt_logprobs" in body]


def _handler(fake: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            fake._open.add(self.connection)

        def finish(self) -> None:
            fake._open.discard(self.connection)
            super().finish()

        def log_message(self, *words: Any) -> None:
            pass

        def do_GET(self) -> None:
            card = {"id": fake.name, "root": fake.root, "max_model_len": fake.max_model_len}
            self.answer(200, {"data": [card]} if self.path == "/v1/models" else {"message": "not found"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if fake.key is not None and self.headers.get("Authorization") != f"Bearer {fake.key}":
                self.answer(401, {"error": "Unauthorized"})
            elif self.path == "/tokenize" and fake.tokenize is not None:
                self.answer(200, {"tokens": fake.tokenize(body["prompt"])})
            elif self.path == "/inference/v1/generate" and fake.is_lean:
                self.complete({"model": body["model"], "prompt": body["token_ids"]} | body["sampling_params"])
            elif self.path != "/v1/completions":
                self.answer(404, {"detail": "Not Found"})
            else:
                self.complete(body)

        def complete(self, body: dict[str, Any]) -> None:
            with fake._lock:
                fake.asked.append(body | {"headers": dict(self.headers)})
                act = fake.script.pop(0) if fake.script and {"prompt_logprobs", "seed"} & body.keys() else "answer"
            if hasattr(self, act):
                getattr(self, act)(body)
            else:
                self.answer(int(act), {"error": {"message": f"a {act}"}})

        def answer(self, status: int | dict, body: Any = None, cut: int | None = None, **headers: str) -> None:
            if isinstance(status, dict):
                status, body = self.result(status)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:cut])
            if cut is not None:
                self.hang_up({})

        def result(self, body: dict[str, Any]) -> tuple[int, Any]:
            ids, k = body["prompt"], body.get("prompt_logprobs")
            wrong = next((i for i in ids if i >= fake.vocab_size), None)
            if body["model"] != fake.name:
                return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
            if wrong is not None:
                return 400, {"error": {"message": f"Token id {wrong} is out of vocabulary"}}
            if len(ids) >= fake.max_model_len:
                return 400, {"error": {"message": "max_tokens must be at least 1, got 0"}}
            if k is not None and k > fake.most_topk:
                return 400, {"error": {"message": f"Requested prompt logprobs of {k}, which is greater than max"}}
            choice = {"index": 0, "text": "x", "prompt_logprobs": None if k is None else fake.scorer(ids, k)}
            if body.get("return_token_ids") and fake.writer is not None:
                choice["token_ids"] = fake.writer(body)
            if "detokenize" in body:
                return 200, {"choices": [{"index": 0}], "prompt_logprobs": choice["prompt_logprobs"]}
            return 200, {"choices": [choice]}

        # ------------------------------------------------------------ what a script may say

        def hang_up(self, body: Any) -> None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

        def cut_json(self, body: Any) -> None:
            self.answer(200, self.result(body)[1], cut=30)

        def half_json(self, body: Any) -> None:
            self.answer(200, json.dumps(self.result(body)[1]).encode()[:30])

        def html(self, body: Any) -> None:
            self.answer(200, b"<html><body>Bad gateway</body></html>")

        def busy(self, body: Any) -> None:
            self.answer(429, {"error": "slow down"}, Retry_After="1")

        def hang(self, body: Any) -> None:
            time.sleep(1.0)
            self.close_connection = True

        def missing(self, body: Any) -> None:
            self.answer(200, {"choices": [{"text": "x"}]})

        def short(self, body: Any) -> None:
            self.changed(body, lambda listed: listed[:-1])

        def empty(self, body: Any) -> None:
            self.changed(body, lambda listed: [None] * len(listed))

        def foreign(self, body: Any) -> None:
            self.changed(body, lambda listed: [None, *(as_entries({63: -1.0}) for _ in listed[1:])])

        def above_zero(self, body: Any) -> None:
            self.changed(body, lambda listed: [None, *(as_entries({t: 0.5}) for t in body["prompt"][1:])])

        def endless(self, body: Any) -> None:
            self.answer(200, b" " * 2**20)

        def elsewhere(self, body: Any) -> None:
            self.answer(307, {}, Location="http://127.0.0.1:9/v1")

        def changed(self, body: Any, change: Callable[[list], list]) -> None:
            status, answer = self.result(body)
            choice = answer["choices"][0]
            choice["prompt_logprobs"] = change(choice["prompt_logprobs"])
            self.answer(status, answer)

    return Handler
