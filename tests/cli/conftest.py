"""A folder with a real pair and prompts in it, and the command line in process."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import shipped
from tropd.cli.main import main

PROMPTS = [row["prompt"] for row in shipped.rows(8)]


@dataclass
class Workspace:
    """Where a user stands: `student/` and `teacher/` (the shipped pair), `prompts.jsonl`, nothing else."""

    root: Path

    def jsonl(self, name: str, rows: list[dict]) -> str:
        (self.root / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return name

    def text(self, name: str, content: str) -> str:
        (self.root / name).write_text(content, encoding="utf-8")
        return name

    def copy(self, of: str, name: str) -> Path:
        return Path(shutil.copytree(self.root / of, self.root / name))

    def fields(self, **changes: object) -> list[str]:
        """A small training run as overrides, with `changes`; a value of `None` takes a field out."""
        fields = {
            "student": "student",
            "teacher": "teacher",
            "data": "prompts.jsonl",
            "output_dir": "out",
            "max_steps": 1,
            "per_device_train_batch_size": 8,
            "max_completion_length": 8,
            "save_strategy": "no",
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "preflight_prompts": 0,
            "method": "opd",
        } | changes
        return [word for name, value in fields.items() if value is not None for word in (f"--{name}", str(value))]


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Workspace:
    shutil.copytree(shipped.student_path(), tmp_path / "student")
    shutil.copytree(shipped.teacher_path(), tmp_path / "teacher")
    monkeypatch.chdir(tmp_path)
    made = Workspace(tmp_path)
    made.jsonl("prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    return made


@dataclass
class Outcome:
    """What a command left: its exit code and what it printed, line breaks of the screen undone."""

    code: int
    out: str
    err: str


@pytest.fixture
def tropd(capsys) -> Callable[..., Outcome]:
    def run(*words: str) -> Outcome:
        capsys.readouterr()
        code = main(list(words))
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return run
