"""`tropd serve`'s application in a thread of this process, on loopback."""

import threading
import time

from training import tiny
from tropd.serving.app import Served, make_app
from tropd.serving.server import bind, make_server
from tropd.teacher.local import LocalTeacher


class Server:
    """One server of a model; a context manager.

    Attributes:
        model: what it serves from its next start on.
    """

    def __init__(self, model, *, tokenizer=None, key=None, most_tokens=10_000, folder="some/teacher"):
        self.model, self.key, self.most_tokens, self.folder = model, key, most_tokens, folder
        self.tokenizer, self._port = tokenizer or tiny.tokenizer(), 0

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        self.stop()

    @property
    def url(self):
        return f"tropd://127.0.0.1:{self._port}"

    def start(self):
        """Serve, at the port that it had before where there was one."""
        at = bind("127.0.0.1", self._port)
        self._port = at.getsockname()[1]
        teacher, ends = LocalTeacher(self.model), [self.tokenizer.eos_token_id]
        app = make_app(Served(teacher, self.tokenizer, "teacher", self.folder, ends, self.key, self.most_tokens))
        self._server = make_server(app)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [at]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)

    def stop(self):
        """As a process that is killed: nobody listens, and open connections break."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)
