"""Requests to a server that may be slow, busy, restarted or temporarily unavailable, with retries.

Scoring changes nothing on the server, so a question whose answer was lost is asked again. What is waited for: no
connection, a connection that breaks, an answer that is cut or of another kind, and the statuses in `RETRIED`. All
other answers are final. No proxies, no redirects, and no answer larger than what was asked for can be.
"""

import http.client
import json
import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import count
from typing import Any

from .address import TEACHER, Address, Role

logger = logging.getLogger(__name__)

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504, 529})

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0
"""Seconds between two attempts at one question; they double."""

FIRST_WORD, NEXT_WORD = 10.0, 60.0
"""Seconds of silence between two warnings that a server does not answer."""

SMALL = 2**20
"""Bytes of an answer that holds no scores, at most."""

SHOWN = 300
"""At most this many characters of a server's message are shown."""

Ask = Callable[..., Any]
"""(path, body, most_bytes) → the answer; `Client.ask`, or the same through one connection."""

Body = dict[str, Any] | bytes | None
"""Of a POST: JSON, or bytes as they are; `None` is a GET."""

Read = Callable[[bytes], Any]
"""An answer's bytes → what they say; raises ValueError where they are cut, or of another kind."""


class ServerRefused(ValueError):
    """An answer that will not change by asking again.

    Attributes:
        status: of HTTP; 200 where the answer itself is the trouble.
    """

    def __init__(self, sentence: str, status: int = 200):
        super().__init__(sentence)
        self.status = status


class Stopped(Exception):
    """Another question has failed for good, so this one is given up."""


class _Unanswered(Exception):
    """No answer yet.

    Attributes:
        pause: seconds that the server asks to wait.
    """

    def __init__(self, reason: str, pause: float = 0.0):
        super().__init__(reason)
        self.pause = pause


class Client:
    """Replicas of one server, asked in turn by any number of threads.

    Args:
        addresses: of the replicas.
        key: sent with each question, and never shown.
        timeout: seconds that one answer may take.
        patience: seconds from the first failure of a question to giving it up.
        role: what sentences call them.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        key: str | None,
        timeout: float,
        patience: float,
        role: Role = TEACHER,
    ):
        self.addresses, self.timeout, self.patience = tuple(addresses), timeout, patience
        self._role = role
        self._key = key
        self._turn = count()
        self._lock = threading.Lock()
        self._idle: dict[Address, list[http.client.HTTPConnection]] = {address: [] for address in addresses}
        self._busy: set[http.client.HTTPConnection] = set()
        self._stop = threading.Event()
        self._silent_since: float | None = None
        self._next_word = 0.0
        self.check_connection: Callable[[Ask], None] | None = None
        """Asked through each new connection before anything else: is it the server that it was?"""

    def ask(
        self,
        path: str,
        body: Body = None,
        most_bytes: int = SMALL,
        *,
        patience: float | None = None,
        only: Address | None = None,
        read: Read | None = None,
    ) -> Any:
        """The answer, once there is one.

        Args:
            path: such as `/v1/completions`.
            body: of a POST; a GET without.
            most_bytes: of the answer.
            patience: another than the client's.
            only: this replica and no other.
            read: what an answer says; of a JSON object its fields, by default.

        Raises:
            ConnectionError: no answer within `patience`.
            ServerRefused: an answer that will not change.
            Stopped: see `stop`.
        """
        patience = self.patience if patience is None else patience
        addresses, first = ((only,), 0) if only else (self.addresses, next(self._turn))
        began: float | None = None
        for attempt in count():
            address = addresses[(first + attempt) % len(addresses)]
            try:
                answer = self._ask_one(address, path, body, most_bytes, read or read_json)
                self._say_answered(address)
                return answer
            except _Unanswered as failure:
                now = time.monotonic()
                began = now if began is None else began
                pause = self._pause(attempt // len(addresses), attempt % len(addresses) + 1 < len(addresses), failure)
                if now + pause > began + patience:
                    raise ConnectionError(
                        f"{self._role.noun} at {address} does not answer ({failure}); waited {now - began:.0f} s"
                    ) from failure
                self._say_waiting(address, failure, began + patience - now)
                if self._stop.wait(pause):
                    raise Stopped from failure
        raise AssertionError

    def stop(self) -> None:
        """Give up every question under way, in all threads, soon."""
        self._stop.set()
        with self._lock:
            for connection in self._busy:
                if connection.sock is not None:
                    with suppress(OSError):
                        connection.sock.shutdown(socket.SHUT_RDWR)

    def go_on(self) -> None:
        """After `stop`, once no thread asks any more."""
        self._stop.clear()

    def close(self) -> None:
        """Close the connections that are kept open."""
        with self._lock:
            for idle in self._idle.values():
                while idle:
                    idle.pop().close()

    @staticmethod
    def _pause(round_: int, another_is_there: bool, failure: _Unanswered) -> float:
        if another_is_there and not failure.pause:
            return 0.0
        pause: float = min(FIRST_PAUSE * 2.0 ** min(round_, 10), LONGEST_PAUSE)
        return max(pause * random.uniform(0.5, 1.0), failure.pause)

    # ------------------------------------------------------------------ one attempt

    def _ask_one(self, address: Address, path: str, body: Body, most_bytes: int, read: Read) -> Any:
        """One attempt; a connection that the server has closed meanwhile is replaced at once."""
        while True:
            if self._stop.is_set():
                raise Stopped
            connection, is_new = self._take(address)
            try:
                if is_new and self.check_connection is not None:
                    self.check_connection(partial(self._exchange, connection, address))
                answer = self._exchange(connection, address, path, body, most_bytes, read)
            except BaseException as error:
                self._drop(connection)
                if isinstance(error, _Unanswered) and not is_new and not error.pause and _is_break(error):
                    continue
                raise
            self._keep(address, connection)
            return answer

    def _take(self, address: Address) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            idle = self._idle[address]
            connection = idle.pop() if idle else None
            is_new = connection is None
            if connection is None:
                kind = http.client.HTTPSConnection if address.is_encrypted else http.client.HTTPConnection
                connection = kind(address.host, address.port, timeout=self.timeout)
            self._busy.add(connection)
        return connection, is_new

    def _keep(self, address: Address, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._busy.discard(connection)
            if connection.sock is not None:
                self._idle[address].append(connection)

    def _drop(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._busy.discard(connection)
        connection.close()

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        address: Address,
        path: str,
        body: Body = None,
        most_bytes: int = SMALL,
        read: Read | None = None,
    ) -> Any:
        """One question and its answer through one connection, which stays open where the server lets it."""
        headers = {"Content-Type": "application/octet-stream" if isinstance(body, bytes) else "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request("GET" if data is None else "POST", address.base + path, data, headers)
            response = connection.getresponse()
            raw = self._read(response, most_bytes)
        except (OSError, http.client.HTTPException) as error:
            raise _Unanswered(_in_words(error)) from error
        if response.will_close:
            connection.close()
        if response.status != 200:
            self._refuse(address, response, raw)
        try:
            return (read or read_json)(raw)
        except ValueError as error:
            raise _Unanswered(f"its answer is {error}: {self._excerpt(raw)}") from error

    def _read(self, response: http.client.HTTPResponse, most_bytes: int) -> bytes:
        parts, size, deadline = [], 0, time.monotonic() + self.timeout
        while part := response.read1(2**16):
            parts.append(part)
            size += len(part)
            if size > most_bytes:
                raise ServerRefused(
                    f"{self._role.noun}'s answer is longer than {most_bytes} bytes, the most that a valid one can have"
                )
            if time.monotonic() > deadline:
                raise TimeoutError(f"no complete answer within {self.timeout:g} s")
        response.read()  # nothing more; an answer that was cut is found out here, and the connection is free again
        return b"".join(parts)

    def _refuse(self, address: Address, response: http.client.HTTPResponse, raw: bytes) -> None:
        status, said = response.status, self._excerpt(raw)
        if status in RETRIED:
            raise _Unanswered(f"{status} {said}", _retry_after(response.headers.get("Retry-After")))
        if 300 <= status < 400:
            to = f" to {response.headers.get('Location', 'nowhere')!r:.200}"
            raise ServerRefused(f"{self._role.noun} at {address} redirects{to}; give the final address", status)
        if status in (401, 403):
            own = "the key in the environment is wrong" if self._key else "it requires a key"
            raise ServerRefused(
                f"{self._role.noun} at {address} refuses the request ({status}): {own}. Export the variable that "
                f"{self._role.option('api_key_env')} names",
                status,
            )
        raise ServerRefused(f"{self._role.noun} at {address} refuses {response.status}: {said}", status)

    def _excerpt(self, raw: bytes) -> str:
        """The beginning of a server's words, or of the message in them, without the key."""
        text = raw[: 8 * SHOWN].decode(errors="replace")
        with suppress(ValueError, RecursionError, AttributeError):
            answer = json.loads(raw)
            text = str((answer.get("error") or answer).get("message") or text)
        text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
        if self._key:
            text = text.replace(self._key, "[key]")
        return text[:SHOWN]

    # ------------------------------------------------------------------ what is said of a silence

    def _say_waiting(self, address: Address, failure: Exception, left: float) -> None:
        now = time.monotonic()
        with self._lock:
            if self._silent_since is None:
                self._silent_since, self._next_word = now, now + FIRST_WORD
            if now < self._next_word:
                return
            self._next_word = now + NEXT_WORD
        logger.warning("%s at %s does not answer (%s); retrying, %.0f s left.", self._subject(), address, failure, left)

    def _say_answered(self, address: Address) -> None:
        with self._lock:
            since, self._silent_since = self._silent_since, None
            was_said = since is not None and self._next_word > since + FIRST_WORD
        if since is not None and was_said:
            logger.warning("%s at %s answers again, after %.0f s.", self._subject(), address, time.monotonic() - since)

    def _subject(self) -> str:
        """At the beginning of a sentence."""
        return self._role.noun[0].upper() + self._role.noun[1:]


def read_json(raw: bytes) -> dict[str, Any]:
    """The fields of a JSON object.

    Raises:
        ValueError: the bytes are none.
    """
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError("truncated, or not JSON") from error
    if not isinstance(answer, dict):
        raise ValueError("no JSON object")
    return answer


def _is_break(error: _Unanswered) -> bool:
    """Did the connection break before an answer, as one does that a server has closed for being idle?"""
    return isinstance(error.__cause__, ConnectionError | http.client.BadStatusLine | http.client.CannotSendRequest)


def _in_words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"{type(error).__name__}: {reason}"[:SHOWN]


def _retry_after(value: str | None) -> float:
    """Seconds that a `Retry-After` asks for; 0 where it asks for none that can be understood."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
