"""Serve the application on a socket, until a signal ends it."""

import signal
import socket
from typing import Any

import uvicorn

CONNECTIONS = 256
"""Connections at once; further ones are asked to retry."""

LAST_SECONDS = 10
"""For the answers under way when the server is ended."""

IDLE_SECONDS = 600
"""After which a connection on which nothing is asked is closed."""


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address; nobody is let in yet."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"port {port} of {host} is not available: {reason}. Choose another: --port N.") from error
    return found


def make_server(app: Any) -> uvicorn.Server:
    """The web server, with bounds; `run(sockets=[…])` serves."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=LAST_SECONDS,
        )
    )


def serve(app: Any, at: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; what is under way is answered first."""
    # uvicorn puts back the handlers that it found, and then raises the signal once more.
    earlier = [(one, signal.signal(one, lambda *_: None)) for one in (signal.SIGTERM, signal.SIGINT)]
    try:
        make_server(app).run(sockets=[at])
    finally:
        for one, handler in earlier:
            signal.signal(one, handler)
        at.close()
