"""The file system of the Berkeley Function-Calling Leaderboard (BFCL v4, multi-turn, base) as an environment.

`bfcl-eval` holds data, tools and checker, and needs nothing of what it depends on: `pip install --no-deps bfcl-eval`.
A conversation of several user turns becomes one row a turn, with the calls of the reference before it. Written by
`python -m tropd.environments.bfcl train rows.jsonl`, for `environment: tropd.environments.bfcl.FileSystem`.
"""

import ast
import copy
import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

try:
    from bfcl_eval.eval_checker.multi_turn_eval.func_source_code.gorilla_file_system import GorillaFileSystem
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import response_checker, state_checker
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error.name} is not installed. It comes with: pip install --no-deps bfcl-eval==2026.3.23", name=error.name
    ) from error

API = "GorillaFileSystem"

SPLITS = ("train", "test")

TEST_EVERY = 4
"""The first of every this many tasks is in the split `test`; the turns of a task stay together."""

TOOLS = tuple(name for name, _ in inspect.getmembers(GorillaFileSystem, inspect.isfunction) if not name.startswith("_"))

Call = tuple[str, dict[str, Any]]


# ---------------------------------------------------------------------- tasks


@cache
def tasks() -> dict[str, dict[str, Any]]:
    """The tasks that need the file system alone, by their id, each with its `reference`: the calls of every turn."""
    asked, answers = (_lines(f"{folder}BFCL_v4_multi_turn_base.json") for folder in ("", "possible_answer/"))
    reference = {row["id"]: row["ground_truth"] for row in answers}
    return {
        row["id"]: row | {"reference": [[read_call(call) for call in turn] for turn in reference[row["id"]]]}
        for row in asked
        if row["involved_classes"] == [API]
    }


def _lines(name: str) -> list[dict[str, Any]]:
    text = (files("bfcl_eval") / "data" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def read_call(text: str) -> Call:
    """Name and arguments of a call as the reference writes it.

    >>> read_call("sort('notes.txt')"), read_call("ls(a=True)")
    (('sort', {'file_name': 'notes.txt'}), ('ls', {'a': True}))
    """
    call = ast.parse(text, mode="eval").body
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in TOOLS):
        raise ValueError(f"{text!r} is not a call of {', '.join(TOOLS)}.")
    names = list(inspect.signature(getattr(GorillaFileSystem, call.func.id)).parameters)[1:]
    placed = dict(zip(names, (ast.literal_eval(value) for value in call.args), strict=False))
    return call.func.id, placed | {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}


def rows(split: str) -> Iterator[dict[str, Any]]:
    """A row for each user turn that asks for calls: the messages before it, and what `FileSystem.reset` gets."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; the tasks are divided into {' and '.join(SPLITS)}.")
    for number, (task, described) in enumerate(tasks().items()):
        if (number % TEST_EVERY == 0) != (split == "test"):
            continue
        messages: list[dict[str, Any]] = []
        told = new_file_system(task)
        for turn, (asked, calls) in enumerate(zip(described["question"], described["reference"], strict=True)):
            messages += asked
            if calls:
                yield {"prompt": list(messages), "task": task, "turn": turn}
            for name, arguments in calls:
                made = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
                messages.append({"role": "assistant", "content": "", "tool_calls": made})
                messages.append({"role": "tool", "name": name, "content": answer(told, name, **arguments)})


# ---------------------------------------------------------------------- the environment


def new_file_system(task: str) -> Any:
    """The file system at the beginning of a task."""
    made = GorillaFileSystem()
    made._load_scenario(copy.deepcopy(tasks()[task]["initial_config"].get(API, {})))
    return made


def answer(system: Any, name: str, /, *values: Any, **arguments: Any) -> str:
    """What a tool says, as the leaderboard shows it to a model."""
    said = getattr(system, name)(*values, **arguments)
    return said if isinstance(said, str) else json.dumps(said) if isinstance(said, dict) else str(said)


class FileSystem:
    """One user turn of a task. Its tools are the leaderboard's own, and so is what it takes to succeed."""

    system: Any  # the file system as the student leaves it
    replies: list[str]  # what its calls have answered, the reference's of the turns before included

    def reset(self, task: str, turn: int, **_: Any) -> None:
        """Begin a turn, after the reference's calls of all earlier turns.

        Args:
            task: id of a task.
            turn: number of the user turn, from 0.
        """
        if task not in tasks():
            raise ValueError(
                f"task is {task!r}, which is not one of BFCL's {API}. Write rows by `tropd.environments.bfcl`."
            )
        self.task, self.turn, self.calls = task, turn, 0
        self.system, self.replies = new_file_system(task), []
        self._excluded = tasks()[task].get("excluded_function") or []
        self._play(self.system, range(turn), self.replies)

    def _play(self, system: Any, turns: range, replies: list[str]) -> None:
        for turn in turns:
            replies += [answer(system, name, **given) for name, given in tasks()[self.task]["reference"][turn]]

    def _call(self, name: str, /, *values: Any, **arguments: Any) -> str:
        self.calls += 1
        if name in self._excluded:
            return json.dumps({"error": f"{name} is not available"})
        said = answer(self.system, name, *values, **arguments)
        self.replies.append(said)
        return said

    def get_reward(self) -> float:
        """1 where files are as the reference leaves them and its replies of this turn were read, else 0."""
        system = new_file_system(self.task)
        expected: list[str] = []
        self._play(system, range(self.turn), [])
        self._play(system, range(self.turn, self.turn + 1), expected)
        if not self.calls:
            return 0.0
        same = state_checker({API: self.system}, {API: system})["valid"]
        return float(same and response_checker(self.replies, expected, self.turn)["valid"])


def _tool(described: dict[str, Any]) -> Callable[..., str]:
    """A method described as in the leaderboard, with a Google-style docstring."""
    name, parameters = described["name"], described["parameters"]["properties"]

    @functools.wraps(getattr(GorillaFileSystem, name))
    def tool(self: FileSystem, *values: Any, **arguments: Any) -> str:
        return self._call(name, *values, **arguments)

    told = [f"    {each}: {' '.join(about['description'].split())}" for each, about in parameters.items()]
    description = " ".join(described["description"].rpartition("Tool description: ")[2].split())
    tool.__doc__ = "\n".join([description, *(["", "Args:", *told] if told else [])])
    return tool


for _described in _lines("multi_turn_func_doc/gorilla_file_system.json"):
    setattr(FileSystem, _described["name"], _tool(_described))


def main(words: list[str]) -> None:
    """Write the rows of a split: `train rows.jsonl`."""
    if len(words) != 2:
        raise SystemExit("usage: python -m tropd.environments.bfcl train|test ROWS.jsonl")
    found = list(rows(words[0]))
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    Path(words[1]).write_text(text, encoding="utf-8")
    print(f"{words[1]}: {len(found)} rows of {len({row['task'] for row in found})} tasks")


if __name__ == "__main__":
    main(sys.argv[1:])
