"""Every hostile program is contained: it ends as it must, the grader lives, and the machine is as before."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from evaluation.sandbox.hostile_programs import GIVEN, OURS, PROGRAMS
from tropd.evaluation.sandbox import Limits, Sandbox, why_not_here

pytestmark = pytest.mark.skipif(why_not_here() is not None, reason=str(why_not_here()))

LIMITS = Limits(cpu_seconds=1, wall_seconds=20.0, memory_bytes=256 << 20, output_bytes=1 << 16)
SHORT = Limits(cpu_seconds=1, wall_seconds=0.3, memory_bytes=256 << 20, output_bytes=1 << 16)


class World:
    """What a program could harm: a folder, two listeners, a process, and the machine's folders for files that pass."""

    def __init__(self, folder: Path):
        self.folder, self.reached = folder, []
        (folder / "precious.txt").write_text("precious")
        (folder / "secret.txt").write_text("secret")
        self.bystander = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.name = f"tropd-test-{os.getpid()}-{folder.name}"
        self.abstract = socket.socket(socket.AF_UNIX)
        self.abstract.bind("\0" + self.name)
        self.abstract.listen()
        for listener in (self.listener, self.abstract):
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # closed at the end of the test
            return
        self.reached.append(connection)

    def write(self, text: str) -> str:
        text = text.replace("FOLDER", str(self.folder)).replace("NAME", self.name)
        return text.replace("PORT", str(self.listener.getsockname()[1])).replace("BYSTANDER", str(self.bystander.pid))

    def state(self) -> dict:
        return {
            "bystander": self.bystander.poll(),
            "reached": len(self.reached),
            "folder": sorted((path.name, path.read_text()) for path in self.folder.iterdir()),
            "planted": [str(path) for folder in ("/tmp", "/dev/shm", "/") for path in Path(folder).glob("hostile*")],
        }

    def close(self) -> None:
        self.bystander.kill()
        self.bystander.wait()
        self.listener.close()
        self.abstract.close()


@pytest.fixture(scope="module")
def sandbox():
    with pytest.MonkeyPatch.context() as patch, Sandbox() as made:
        patch.setenv("API_TOKEN", "hunter2")
        yield made


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("world"))
    yield made
    made.close()


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_the_programs_are_the_nineteen_of_the_design_and_more_of_our_own():
    assert len(GIVEN) == 19 and len(OURS) >= 20 and not set(GIVEN) & set(OURS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_hostile_program_is_contained(sandbox, world, name):
    hostile, before = PROGRAMS[name], world.state()
    limits = SHORT if hostile.ended == "wall" else LIMITS
    outcome = sandbox.run(world.write(hostile.text), b"", limits)
    said = outcome.stdout.decode(errors="replace")
    assert "GOT OUT" not in said
    assert outcome.ended == hostile.ended, outcome
    assert hostile.says in said, outcome
    assert len(outcome.stdout) <= limits.output_bytes and len(outcome.stderr) <= limits.output_bytes
    assert world.state() == before
    assert children_of(sandbox._server.pid) == []
    assert sandbox.run("print(sum(map(int, input().split())))", b"1 2 3").stdout == b"6\n"


@pytest.mark.parametrize("name", ["fork_bomb", "read_files", "network", "environment", "delete"])
def test_without_the_sandbox_the_same_program_gets_out(tmp_path, name):
    """So that the test above can fail."""
    world = World(tmp_path)
    done = subprocess.run(
        [sys.executable, "-S", "-c", world.write(PROGRAMS[name].text)],
        env={"API_TOKEN": "hunter2"},
        check=False,
        capture_output=True,
        text=True,
    )
    world.close()
    assert "GOT OUT" in done.stdout
