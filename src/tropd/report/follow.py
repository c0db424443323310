"""A run's page, served while the run continues: to this machine only, and nothing but the page."""

import html
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from ..visible import visible
from .choice import files_of
from .run_folder import read_run
from .run_page import run_page

HOST = "127.0.0.1"
KNOWN_AS = (HOST, "localhost")
"""Names by which a browser may ask; any other is a page elsewhere that has its name point here."""
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class LivePage:
    """The page of runs, made anew when one of their files has changed."""

    def __init__(self, folders: Sequence[Path], seconds: int):
        self.folders, self.seconds = folders, seconds
        self._lock, self._stamp, self._html = Lock(), None, ""

    def html(self) -> str:
        """Raises `ValueError` where a folder is no run's (yet)."""
        with self._lock:
            files = files_of([read_run(folder) for folder in self.folders])
            stamp: Any = [(file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else None for file in files]
            if stamp != self._stamp:
                self._html, self._stamp = run_page(self.folders, follow=self.seconds), stamp
            return self._html


def serve(folders: Sequence[Path], port: int, seconds: int) -> ThreadingHTTPServer:
    """A server of the page on the loopback interface, ready for `serve_forever`.

    Raises:
        OSError: the port is taken.
    """
    page = LivePage(folders, seconds)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Host", "").rsplit(":", 1)[0] not in KNOWN_AS:
                self._answer(403, "<!doctype html><p>Open this page at the address that tropd printed.")
            elif self.path.split("?")[0] != "/":
                self._answer(404, "<!doctype html><p>The only page here is <a href='/'>/</a>")
            else:
                self._answer(*self._page())

        def _page(self) -> tuple[int, str]:
            try:
                return 200, page.html()
            except ValueError as error:
                return 503, WAITING.format(seconds=seconds, why=html.escape(visible(str(error))))

        def _answer(self, status: int, page_text: str) -> None:
            body = page_text.encode("utf-8")
            self.send_response(status)
            for name, value in {**HEADERS, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the terminal is for the run's news."""

    return ThreadingHTTPServer((HOST, port), Handler)


WAITING = (
    '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="{seconds}">'
    "<title>tropd: waiting</title><p>Nothing to show yet: {why}"
)
