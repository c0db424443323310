"""The files of a comparison: the only place that knows their names.

state.json           the plan, and the hardware as the user describes it
settings/NAME/       student, prompts.json, before.json
taken/NAME.json      scores before training of imported cells, until the setting is prepared
cells/NAME/          result.json, run.json, metrics.jsonl, rollouts/
running/             running tasks and their progress; leftovers of a kill are deleted
logs/NAME.txt        the output of a task, tracebacks included
results.json, tables.md, report.html
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..atomic_files import write_whole

RESULT = "result.json"
SECONDS_OF_A_LOCK = 10.0
"""Workers of a comparison that was killed need a moment to notice it."""


class Told(NamedTuple):
    """How far a task is, in words; and which part of its work is done, where that is known."""

    words: str
    share: float | None


@dataclass(frozen=True)
class Layout:
    root: Path

    def running(self, name: str) -> Path:
        return self.root / "running" / name

    def tell(self, name: str, words: str, share: float | None = None) -> None:
        """Say how far a task is; its folder may not be there yet."""
        file = self._told(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".partial")
        aside.write_text(json.dumps([words, share]), encoding="utf-8")  # no fsync: it is of this moment alone
        os.replace(aside, file)

    def told(self, name: str) -> "Told | None":
        """How far a task said it is; `None` where it said nothing yet."""
        try:
            return Told(*json.loads(self._told(name).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def _told(self, name: str) -> Path:
        return self.root / "running" / f"{name}.told"

    def setting(self, name: str) -> Path:
        return self.root / "settings" / name

    def log(self, name: str) -> Path:
        return self.root / "logs" / f"{name}.txt"

    def setting_error(self, name: str) -> Path:
        return self.root / "settings" / f"{name}.error.txt"

    def cell(self, name: str) -> Path:
        return self.root / "cells" / name

    def is_ready(self, name: str) -> bool:
        return self.setting(name).is_dir()

    def before(self, name: str) -> dict[str, Any] | None:
        """Scores of a setting's models before training; `None` until it is prepared, or taken over."""
        file = self.setting(name) / "before.json"
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))
        return None if (taken := self.taken(name)) is None else taken["before"]

    def taken(self, name: str) -> dict[str, Any] | None:
        """Whose cells were taken over in a setting, with `file` and `before`; `None` where none were."""
        file = self.root / "taken" / f"{name}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def write_taken(self, name: str, taken: dict[str, Any]) -> None:
        write_whole(self.root / "taken" / f"{name}.json", json.dumps(taken) + "\n")

    def results(self) -> dict[str, dict[str, Any]]:
        """Every cell that has ended, by name."""
        files = sorted((self.root / "cells").glob(f"*/{RESULT}"))
        return {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in files}

    def read_state(self) -> dict[str, Any]:
        return json.loads((self.root / "state.json").read_text(encoding="utf-8"))

    def is_empty(self) -> bool:
        """Was nothing prepared, run or taken over yet?"""
        return not any(any(self.root.glob(pattern)) for pattern in ("settings/*/", "cells/*/", "taken/*"))

    def has_state(self) -> bool:
        return (self.root / "state.json").is_file()

    def write_state(self, state: dict[str, Any]) -> None:
        write_whole(self.root / "state.json", json.dumps(state, indent=1) + "\n")

    def forget_running(self) -> None:
        shutil.rmtree(self.root / "running", ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Inside, no other comparison writes here; yields the lock's descriptor, which workers hold on to as well.

        Raises:
            ValueError: another one is running.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            deadline = time.monotonic() + SECONDS_OF_A_LOCK
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise ValueError(
                            f"--out is {str(self.root)!r}, where another comparison is running. Wait for it, or "
                            "choose another folder."
                        ) from None
                    time.sleep(0.2)
            yield file.fileno()
