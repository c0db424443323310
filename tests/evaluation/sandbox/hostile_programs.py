"""Programs that try to get out of the sandbox, each with how it must end.

Where one gets out it prints `GOT OUT`; what it can print without the sandbox is bounded, so that a sandbox that is
broken shows it and does no damage. FOLDER, PORT, NAME (of an abstract socket) and BYSTANDER are put in by the tests.
"""

from dataclasses import dataclass

LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"


@dataclass(frozen=True)
class Hostile:
    """A program, and what must be seen of it from outside: how it `ended`, and what it says of the attempt."""

    text: str
    ended: str = "exit"
    says: str = ""


def attempt(*calls: str, setup: str = "") -> str:
    """Python expressions that must raise; each says so."""
    lines = [LIBC, setup]
    for call in calls:
        lines.append(f"try: result = {call}\nexcept BaseException as error: print('refused', type(error).__name__)")
        lines.append(f"else: print('GOT OUT', {call!r}, result)")
    return "\n".join(lines)


def system_call(*calls: str, setup: str = "") -> str:
    """Calls of the C library that must return −1."""
    lines = [LIBC, setup]
    for call in calls:
        lines.append(f"result = libc.{call}\nprint('refused' if result == -1 else 'GOT OUT', {call!r}, result)")
    return "\n".join(lines)


GIVEN = {
    # the nineteen of the design
    "fork_bomb": Hostile(
        LIBC
        + """
made = 0
while made < 20:
    child = libc.fork()
    if child == 0:
        import time; time.sleep(2); libc._exit(0)
    if child < 0: break
    made += 1
print("GOT OUT" if made else "refused", made)
""",
        says="refused",
    ),
    "read_files": Hostile(
        attempt(*(f"open({path!r}, 'rb').read()" for path in ("/etc/passwd", "/etc/hostname", "FOLDER/secret.txt")))
        + "\n"
        + attempt("os.listdir('/')", "os.listdir('/home')", "open('/proc/1/environ').read()", "os.listdir('/proc')"),
        says="refused PermissionError\n" * 7,
    ),
    "network": Hostile(
        attempt(
            "socket.create_connection(('127.0.0.1', PORT), 3)",
            "socket.socket(socket.AF_UNIX).connect('\\0NAME')",
            "socket.socketpair()",
            setup="import socket",
        ),
        says="refused PermissionError\n" * 3,
    ),
    "kill_parent": Hostile(
        system_call("kill(os.getppid(), 9)", "kill(-1, 18)", "tgkill(os.getppid(), os.getppid(), 9)"),
        says="refused",
    ),
    "fill_the_disk": Hostile(
        attempt(*(f"open({folder!r} + '/hostile', 'wb').write(b'x')" for folder in ("FOLDER", "/tmp", "/dev/shm", "/")))
        + "\n"
        + attempt("os.truncate('FOLDER/precious.txt', 1 << 20)"),
        says="refused",
    ),
    "memory": Hostile(
        """
import mmap
taken, kept = 0, []
try:
    while taken < 1024: kept.append(bytearray(b"x") * (1 << 25)); taken += 32
except MemoryError: print("refused MemoryError")
try:
    while taken < 1024: kept.append(mmap.mmap(-1, 1 << 25)); taken += 32
except OSError: print("refused mmap")
if taken >= 1024: print("GOT OUT", taken)
""",
        says="refused MemoryError\nrefused mmap",
    ),
    "endless_loop": Hostile(
        """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
print("tried", flush=True)
while True:
    try:
        while True: pass
    except BaseException: pass
""",
        ended="cpu",
        says="tried",
    ),
    "exit_as_if_well": Hostile("import os; os.write(1, b'tried'); os._exit(0)", says="tried"),
    "print_without_end": Hostile(
        "import os\nwritten = 0\nwhile written < 1 << 26: written += os.write(1, b'y' * (1 << 16))\nprint('GOT OUT')"
    ),
    "daemon": Hostile(
        LIBC
        + """
child = libc.fork()
if child == 0:
    libc.setsid()
    import time; time.sleep(3); libc._exit(0)
print("GOT OUT" if child > 0 else "refused")
""",
        says="refused",
    ),
    "delete": Hostile(
        system_call(
            "unlink(b'FOLDER/precious.txt')", "rename(b'FOLDER/precious.txt', b'FOLDER/gone')", "rmdir(b'FOLDER')"
        ),
        says="refused",
    ),
    "sleep": Hostile("import time; print('tried', flush=True); time.sleep(10000)", ended="wall", says="tried"),
    "threads": Hostile(
        """
import threading, time
threading.stack_size(32768)
print("tried", flush=True)
for _ in range(3000): threading.Thread(target=lambda: time.sleep(1000), daemon=True).start()
time.sleep(1000)
""",
        ended="threads",
        says="tried",
    ),
    "leave_by_the_kernel": Hostile(
        system_call(
            "unshare(0x10020000)",
            "ptrace(16, os.getppid(), 0, 0)",
            "mount(b'none', b'/tmp', b'tmpfs', 0, None)",
            "chroot(b'/tmp')",
            "syscall(250, 0, 0, 0)",  # keyctl
            "syscall(321, 0, 0, 0)",  # bpf
            "syscall(425, 1, 0)",  # io_uring_setup
            "syscall(323, 0)",  # userfaultfd
            "syscall(298, 0, 0, 0, 0, 0)",  # perf_event_open
            "syscall(310, os.getppid(), 0, 0, 0, 0, 0)",  # process_vm_readv
        ),
        says="refused",
    ),
    "small_files": Hostile(
        attempt(
            "[open('/dev/shm/hostile_%d' % n, 'wb').write(b'x' * 4096) for n in range(3)]", "os.mkdir('/tmp/hostile')"
        ),
        says="refused PermissionError\n" * 2,
    ),
    "inodes": Hostile(
        attempt(
            "os.open('/tmp/hostile', os.O_CREAT | os.O_WRONLY)",
            "os.symlink('/', '/tmp/hostile')",
            "os.link('FOLDER/precious.txt', 'FOLDER/hostile')",
            "os.mknod('/tmp/hostile')",
        ),
        says="refused PermissionError\n" * 4,
    ),
    "shared_memory": Hostile(
        system_call("shmget(0, 1 << 16, 0o1600)", "msgget(0, 0o1600)", "semget(0, 1, 0o1600)"), says="refused"
    ),
    "memory_file": Hostile(attempt("os.memfd_create('x')"), says="refused"),
    "environment": Hostile(
        """
import os
print("GOT OUT" if "API_TOKEN" in os.environ else "refused", sorted(os.environ))
for where in ("/proc/%d/environ" % os.getppid(), "/proc/1/environ", "/proc/self/environ"):
    try: text = open(where, "rb").read()
    except OSError as error: print("refused", type(error).__name__)
    else: print("GOT OUT", where, text)
""",
        says="refused PermissionError\n" * 3,
    ),
}

OURS = {
    "limits_of_the_parent": Hostile(
        attempt(
            "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))",
            "resource.prlimit(BYSTANDER, resource.RLIMIT_NOFILE)",
            setup="import resource",
        ),
        says="refused PermissionError\n" * 2,
    ),
    "raise_own_limits": Hostile(
        attempt(
            "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
            "resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))",
            setup="import resource",
        ),
        says="refused",
    ),
    "signal_by_a_pipe": Hostile(
        attempt(
            "fcntl.fcntl(pipe[0], fcntl.F_SETOWN, BYSTANDER)",
            "fcntl.fcntl(pipe[0], 10, 9)",  # F_SETSIG
            "fcntl.fcntl(pipe[0], fcntl.F_SETFL, os.O_ASYNC)",
            setup="import fcntl; pipe = os.pipe()",
        ),
        says="refused PermissionError\n" * 3,
    ),
    "lease_on_a_file": Hostile(
        attempt(
            "fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)",
            "fcntl.lockf(file, fcntl.LOCK_SH)",
            "fcntl.flock(file, fcntl.LOCK_SH)",
            setup="import fcntl, abc; file = open(abc.__file__)",
        ),
        says="refused PermissionError\n" * 3,
    ),
    "type_into_the_terminal": Hostile(
        attempt("fcntl.ioctl(0, 0x5412, b'x')", "open('/dev/tty')", setup="import fcntl"), says="refused"
    ),
    "run_a_command": Hostile(
        attempt(
            "os.execv('/bin/sh', ['sh', '-c', 'echo GOT OUT'])",
            "subprocess.run(['true'])",
            "os.popen('true')",
            setup="import subprocess",
        ),
        says="refused PermissionError\n" * 3,
    ),
    "run_from_memory": Hostile(
        system_call("syscall(322, 0, b'/bin/true', 0, 0, 0)", "syscall(319, b'x', 0)"),  # execveat, memfd_create
        says="refused",
    ),
    "clone_with_other_flags": Hostile(
        system_call(
            "syscall(56, 17, 0, 0, 0, 0)",  # SIGCHLD: a process
            "syscall(56, 0x10000011, 0, 0, 0, 0)",  # a user namespace
            "syscall(56, 0x00010000, 0, 0, 0, 0)",  # a thread in name only
            "syscall(435, 0, 0)",  # clone3
            "syscall(58)",  # vfork
        ),
        says="refused",
    ),
    "other_interface": Hostile(
        LIBC + "import sys\nprint('tried', flush=True)\nlibc.syscall(0x40000000 | 39)\nprint('GOT OUT')", says="tried"
    ),
    "write_through_proc": Hostile(
        attempt(
            "open('/proc/self/mem', 'wb')",
            "open('/proc/%d/mem' % os.getppid(), 'rb')",
            "open('/proc/self/oom_score_adj', 'w')",
            "open('/proc/sys/kernel/core_pattern')",
        ),
        says="refused PermissionError\n" * 4,
    ),
    "up_and_around": Hostile(
        attempt(
            "open('/usr/lib/../../etc/passwd').read()",
            "open('/proc/self/root/etc/passwd').read()",
            "open('/proc/self/cwd/etc/passwd').read()",
            "open('/dev/fd/0/../../etc/passwd').read()",
        ),
        says="refused",
    ),
    "files_of_the_grader": Hostile(
        attempt(
            "os.listdir('/proc/%d/fd' % os.getppid())",
            "os.readlink('/proc/%d/cwd' % os.getppid())",
            "os.pread(4, 1, 0)",
        ),
        says="refused",
    ),
    "answer_for_the_server": Hostile(
        "import os\nfor number in range(3, 64):\n    try: os.write(number, b'{}')\n    except OSError: pass\n"
        "    else: print('GOT OUT', number)\nprint('refused')",
        says="refused",
    ),
    "become_another": Hostile(
        system_call(
            "setuid(1)",
            "setgid(1)",
            "setgroups(0, 0)",
            "prctl(38, 0, 0, 0, 0)",
            "prctl(22, 0, 0, 0, 0)",
            "personality(0)",
        ),
        says="refused",
    ),
    "privileges_again": Hostile(
        attempt("open('/proc/self/status').read()")
        + "\nimport struct\nheader = struct.pack('=Ii', 0x20080522, 0)\n"
        + "print('refused' if libc.capset(header, struct.pack('=6I', *[0xFFFFFFFF] * 6)) == -1 else 'GOT OUT')",
        says="refused",
    ),
    "machine_off": Hostile(
        system_call(
            "reboot(0x89ABCDEF)", "sethostname(b'x', 1)", "syscall(159, 0)", "swapoff(b'/x')", "syscall(227, 0, 0)"
        ),
        says="refused",
    ),
    "deep_text": Hostile("print('tried', flush=True)\neval('(' * 100000 + ')' * 100000)", says="tried"),
    "crash": Hostile(LIBC + "print('tried', flush=True)\nctypes.string_at(0)\nprint('GOT OUT')", says="tried"),
    "huge_number": Hostile(
        "print('tried', flush=True)\nlen(str(9 ** 9 ** 9))\nprint('GOT OUT')", ended="cpu", says="tried"
    ),
    "errors_without_end": Hostile(
        "import os\nwritten = 0\nwhile written < 1 << 26: written += os.write(2, b'e' * (1 << 16))\nprint('GOT OUT')"
    ),
    "hole_in_the_output": Hostile(
        "import os\nos.pwrite(1, b'x', 1 << 40)\nprint('GOT OUT')",
    ),
    "grow_the_output": Hostile(
        attempt("os.ftruncate(1, 1 << 30)", "os.posix_fallocate(1, 0, 1 << 30)"), says="refused PermissionError\n" * 2
    ),
    "exit_functions": Hostile(
        "import atexit\n@atexit.register\ndef never():\n    print('tried', flush=True)\n    while True: pass\n",
        ended="cpu",
        says="tried",
    ),
    "signals_as_timers": Hostile(
        "import signal\nsignal.signal(signal.SIGALRM, lambda *_: None)\n"
        "signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)\n"
        "print('tried', flush=True)\nwhile True: signal.pause()",
        ended="wall",
        says="tried",
    ),
}

PROGRAMS = GIVEN | OURS
