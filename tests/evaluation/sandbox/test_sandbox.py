"""What programs may do, what becomes of them, and when none is run."""

import os
import platform
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tropd.evaluation.sandbox import Limits, Sandbox, SandboxRefused, client, lockdown, seccomp, why_not_here
from tropd.evaluation.sandbox.system_calls import AARCH64, ALWAYS, X86_64

needs_containment = pytest.mark.skipif(why_not_here() is not None, reason=str(why_not_here()))


@pytest.fixture(scope="module")
def sandbox():
    if why_not_here() is not None:
        pytest.skip(str(why_not_here()))
    with Sandbox() as made:
        yield made


@pytest.mark.parametrize(
    ("program", "stdin", "stdout"),
    [
        ("print(input())", "Grüße\n", "Grüße\n"),
        ("import sys; print(len(sys.stdin.buffer.read()))", "1234", "4\n"),
        ("print(open(0).read().upper())", "a", "A\n"),
        (
            "import sys; sys.setrecursionlimit(10**6)\ndef f(n): return n and 1 + f(n - 1)\nprint(f(50000))",
            "",
            "50000\n",
        ),
        (
            "import threading\nthreading.stack_size(1 << 26)\nt = threading.Thread(target=lambda: print(7))\nt.start()",
            "",
            "7\n",
        ),
        ("import atexit, io, sys\nout = io.StringIO('late')\natexit.register(lambda: print(out.read()))", "", "late\n"),
        ("print(1); exit()", "", "1\n"),
        (
            "import json, zoneinfo, sqlite3\nprint(sqlite3.connect(':memory:').execute('select 2').fetchone())",
            "",
            "(2,)\n",
        ),
        ("print(__name__); global x; x = 3; print(globals()['x'])", "", "__main__\n3\n"),
        ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\nprint(P(1))", "", "P(x=1)\n"),
        ("print(list({'one', 'two', 'three', 'four'}) == list({'one', 'two', 'three', 'four'}))", "", "True\n"),
    ],
)
def test_an_ordinary_program_runs_as_it_does_at_home(sandbox, program, stdin, stdout):
    outcome = sandbox.run(program, stdin.encode())
    assert outcome.stdout.decode() == stdout, outcome
    assert outcome.succeeded


def test_sets_have_the_same_order_in_every_run(sandbox):
    program = "print(*{str(n) for n in range(50)})"
    first = sandbox.run(program).stdout
    with Sandbox() as another:
        assert another.run(program).stdout == first


@pytest.mark.parametrize(
    ("program", "exit_code", "stderr"),
    [
        ("1 / 0", 1, "ZeroDivisionError"),
        ("def f(:", 1, "SyntaxError"),
        ("raise SystemExit(3)", 3, ""),
        ("import sys; sys.exit('no')", 1, "no"),
        ("import os; os.abort()", -signal.SIGABRT, ""),
    ],
)
def test_a_program_that_fails_says_how(sandbox, program, exit_code, stderr):
    outcome = sandbox.run(program)
    assert (outcome.ended, outcome.exit_code) == ("exit", exit_code) and not outcome.succeeded
    assert stderr in outcome.stderr.decode()


def test_output_beyond_the_limit_is_an_error_of_the_program(sandbox):
    outcome = sandbox.run("print('x' * 100000)", limits=Limits(output_bytes=1 << 16))
    assert not outcome.succeeded and outcome.stdout == b"x" * (1 << 16)


def test_packages_are_the_standard_library_and_those_that_are_named(sandbox):
    program = "import numpy; print(numpy.arange(4).sum())"
    assert b"ModuleNotFoundError" in sandbox.run(program).stderr
    with Sandbox(packages=("numpy",)) as with_numpy:
        assert with_numpy.run(program).stdout == b"6\n"
        assert b"Error" in with_numpy.run("import torch").stderr
    with pytest.raises(ValueError, match="packages has 'no_such_package', which is not installed"):
        Sandbox(packages=("no_such_package",))


def test_a_program_costs_milliseconds(sandbox):
    times = []
    for _ in range(20):
        times.append(sandbox.run("print(1)").cpu_seconds)
    assert sorted(times)[10] < 0.03


def test_nothing_is_left_of_a_sandbox_that_is_closed():
    if why_not_here() is not None:
        pytest.skip(str(why_not_here()))
    made = Sandbox()
    made.close()
    assert made._server.poll() is not None
    with pytest.raises(SandboxRefused, match="does not answer"):
        made.run("print(1)")


def test_a_server_that_was_killed_is_said_and_not_run_around():
    if why_not_here() is not None:
        pytest.skip(str(why_not_here()))
    with Sandbox() as made:
        made._server.kill()
        made._server.wait()
        with pytest.raises(SandboxRefused, match=r"does not answer|has ended"):
            made.run("print(1)")


@needs_containment
def test_a_program_dies_with_its_grader(tmp_path):
    code = (
        "from tropd.evaluation.sandbox import Sandbox, Limits; import sys\n"
        "made = Sandbox(); print(made._server.pid, flush=True)\n"
        "made.run('while True: pass', limits=Limits(cpu_seconds=60))"
    )
    grader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert grader.stdout is not None
    server = int(grader.stdout.readline())
    children = Path(f"/proc/{server}/task/{server}/children")
    wait_until(lambda: children.read_text().split())
    program = int(children.read_text())
    grader.kill()
    grader.wait()
    wait_until(lambda: not running(server) and not running(program))


def wait_until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# What the self-test and the lock-down refuse.

LEFT_OUT = {
    "server.lock_down.__globals__['install_filter'] = lambda *_: None": "start another process|change the limits",
    "server.lock_down.__globals__['restrict_files'] = lambda *_: None": "read a file",
    "server.lock_down.__globals__['_set_limits'] = lambda *_: None": "take more memory",
}


@needs_containment
@pytest.mark.parametrize("patch", LEFT_OUT)
def test_the_self_test_notices_a_layer_that_is_missing(monkeypatch, patch):
    boot = client.BOOT.replace(" main(", f" from tropd.evaluation.sandbox import server; {patch}; main(")
    monkeypatch.setattr(Sandbox._command, "__defaults__", (boot,))
    with pytest.raises(SandboxRefused, match=f"was able to ({LEFT_OUT[patch]})"):
        Sandbox()


@needs_containment
def test_a_program_is_not_run_where_the_lock_down_fails(monkeypatch):
    patch = (
        "exec('def fail(*_): raise OSError(1, \"no filter\")'); server.lock_down.__globals__['install_filter'] = fail"
    )
    boot = client.BOOT.replace(" main(", f" from tropd.evaluation.sandbox import server; {patch}; main(")
    monkeypatch.setattr(Sandbox._command, "__defaults__", (boot,))
    with pytest.raises(SandboxRefused, match=r"(?s)could not be locked down, and was not run.*no filter"):
        Sandbox()


@pytest.mark.parametrize(
    ("system", "machine", "sentence"),
    [
        ("Darwin", "arm64", "needs the Linux kernel, and this is Darwin. Grade code on a Linux machine"),
        ("Linux", "riscv64", "the sandbox supports x86_64 and aarch64, and this machine is riscv64"),
    ],
)
def test_a_platform_that_cannot_contain_is_refused_in_a_sentence(monkeypatch, system, machine, sentence):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(SandboxRefused, match=re.escape(sentence)):
        Sandbox()


@pytest.mark.skipif(platform.system() != "Linux", reason="asks the kernel of Linux")
def test_a_kernel_without_landlock_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr(lockdown, "landlock_version", lambda libc: 0)
    with pytest.raises(SandboxRefused, match=r"no Landlock .* could read your files"):
        Sandbox()


# The filter, evaluated here as the kernel would.


def evaluate(program, number: int, arguments=(), architecture=0xC000003E) -> int:
    data = struct.pack("=iIQ6Q", number, architecture, 0, *[*arguments, *[0] * (6 - len(arguments))])
    place, value = 0, 0
    while True:
        code, true, false, constant = program[place]
        if code == seccomp.RETURN:
            return constant
        if code == seccomp.LOAD:
            value, step = struct.unpack_from("=I", data, constant)[0], 0
        elif code == seccomp.JUMP_EQUAL:
            step = true if value == constant else false
        elif code == seccomp.JUMP_GREATER_EQUAL:
            step = true if value >= constant else false
        else:
            assert code == seccomp.JUMP_ANY_BIT
            step = true if value & constant else false
        place += 1 + step


ALLOWED, REFUSED = seccomp.ALLOW[3], seccomp.REFUSE[3]


@pytest.mark.parametrize("name", ["x86_64", "aarch64"])
@pytest.mark.parametrize(
    ("call", "arguments", "verdict"),
    [
        ("read", (0, 0, 0), ALLOWED),
        ("openat", (0, 0, os.O_CLOEXEC), ALLOWED),
        ("openat", (0, 0, os.O_WRONLY), REFUSED),
        ("openat", (0, 0, os.O_RDWR), REFUSED),
        ("openat", (0, 0, os.O_CREAT), REFUSED),
        ("openat", (0, 0, 0o20000000), REFUSED),  # O_TMPFILE
        ("clone", (0x003D0F00,), ALLOWED),
        ("clone", (17,), REFUSED),
        ("clone", (0x103D0F00,), REFUSED),  # with a user namespace
        ("fcntl", (1, 1), ALLOWED),
        ("fcntl", (1, 8, 1), REFUSED),  # F_SETOWN
        ("fcntl", (1, 4, 0o4000), ALLOWED),  # F_SETFL
        ("fcntl", (1, 4, 0o20000), REFUSED),  # with O_ASYNC
        ("ioctl", (0, 0x5401), ALLOWED),
        ("ioctl", (0, 0x5412), REFUSED),  # TIOCSTI
        ("tgkill", (77, 1, 9), ALLOWED),
        ("tgkill", (78, 1, 9), REFUSED),
        ("prlimit64", (0, 7, 0, 1), ALLOWED),
        ("prlimit64", (5, 7, 0, 1), REFUSED),
        ("prlimit64", (0, 7, 1), REFUSED),
        ("prlimit64", (0, 7, 1 << 32), REFUSED),
        ("prctl", (15,), ALLOWED),
        ("prctl", (38,), REFUSED),
        ("clone3", (), seccomp.ABSENT[3]),
    ],
)
def test_the_filter_gives_each_call_its_verdict(name, call, arguments, verdict):
    machine = seccomp.MACHINES[name]
    program = seccomp.filter_program(machine, pid=77)
    assert evaluate(program, machine.numbers[call], arguments, machine.architecture) == verdict


@pytest.mark.parametrize("name", ["x86_64", "aarch64"])
def test_the_filter_refuses_every_number_that_is_not_listed(name):
    machine = seccomp.MACHINES[name]
    program = seccomp.filter_program(machine, pid=77)
    listed = set(machine.numbers.values())
    unlisted = [number for number in range(600) if number not in listed]
    assert {evaluate(program, number, (), machine.architecture) for number in unlisted} == {REFUSED}
    assert evaluate(program, 0, (), architecture=3) == seccomp.KILL[3]
    assert evaluate(program, seccomp.X32 | 39, (), machine.architecture) == seccomp.KILL[3]


def test_every_name_that_is_always_allowed_has_a_number_somewhere():
    assert set(ALWAYS) <= set(X86_64) | set(AARCH64)


@pytest.mark.parametrize(
    ("table", "header"),
    [(X86_64, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), (AARCH64, "/usr/include/asm-generic/unistd.h")],
)
def test_the_numbers_are_those_of_the_kernels_headers(table, header):
    if not Path(header).exists():
        pytest.skip(f"{header} is not installed")
    numbers = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text()))
    numbers.setdefault("newfstatat", numbers.get("fstatat"))  # the same call, named otherwise for 64 bits
    assert {name: int(numbers[name]) for name in table} == table
