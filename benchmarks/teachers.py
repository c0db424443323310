"""What a teacher costs in this process, behind vLLM and behind `tropd serve`, side by side.

    OMP_NUM_THREADS=1 python benchmarks/teachers.py --teacher DIR --vllm .venv-vllm/bin/python --json teachers.json

Each way scores the same rows of random tokens with the same weights in float32; a share of the tokens, drawn with
--seed, wants the top-k. Servers are started here, on loopback. Processor time is that of the server's processes and of
this one together, after one pass that nobody counts; bytes are those of the answers. The ways take turns, and the
median counts. Without --vllm that way is left out. --recipe trains instead:

    OMP_NUM_THREADS=1 python benchmarks/teachers.py --recipe recipes/demo.yaml
"""

import argparse
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tropd.shipped import locate
from tropd.teacher.local import LocalTeacher, TopKRequest
from tropd.teacher.served import http
from tropd.teacher.served.connect import connect

ROOT = Path(__file__).parents[1]

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}

SECONDS_TO_START = 900


@dataclass(frozen=True)
class Task:
    """Rows to score, and which of their N tokens want the top-k."""

    contexts: list[list[int]]
    responses: list[list[int]]
    wanted: torch.Tensor
    k: int
    vocabulary: int
    rows_per_pass: int

    @property
    def num_tokens(self) -> int:
        """Scored tokens."""
        return len(self.wanted)

    def score(self, teacher: Any, rows: list[int] | None = None, k: int | None = None) -> Any:
        """One pass over these rows, all by default."""
        rows = list(range(len(self.contexts))) if rows is None else rows
        length = len(self.responses[0])
        wanted = torch.cat([self.wanted[row * length : (row + 1) * length] for row in rows])
        k = self.k if k is None else k
        topk = TopKRequest(
            k, self.vocabulary, lambda logp, entropy, tokens: wanted[tokens], lambda: torch.where(wanted, 1.0, -1e9)
        )
        responses = [self.responses[row] for row in rows]
        return teacher.score(
            [self.contexts[row] for row in rows],
            responses,
            [[True] * length for _ in responses],
            pad_id=0,
            rows_per_pass=self.rows_per_pass,
            topk=topk if k else None,
        )


def make_task(options: argparse.Namespace, vocabulary: int) -> Task:
    """Random tokens, the same for the same seed."""
    draws = torch.Generator().manual_seed(options.seed)
    contexts = torch.randint(5, vocabulary, (options.rows, options.context), generator=draws)
    responses = torch.randint(5, vocabulary, (options.rows, options.response), generator=draws)
    wanted = torch.rand(options.rows * options.response, generator=draws) < options.outliers
    return Task(contexts.tolist(), responses.tolist(), wanted, options.k, vocabulary, options.rows_per_pass)


# ---------------------------------------------------------------------- servers


@contextmanager
def running(command: list[str], url: str, environment: dict[str, str]) -> Iterator[int]:
    """A server process with all it starts, once it answers; its process group."""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        _wait(process, url)
        yield process.pid
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: subprocess.Popen, url: str) -> None:
    for _ in range(SECONDS_TO_START):
        try:
            urllib.request.urlopen(f"{url}/v1/models", timeout=5).close()
            return
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"the server at {url} answers {error.code}") from error
        except OSError:
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with {process.returncode}: {' '.join(process.args)}") from None
        time.sleep(1)
    raise TimeoutError(url)


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def own_server(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """`tropd serve`: its address, its process group."""
    port = free_port()
    words = ["--teacher", options.teacher, "--port", str(port), "--dtype", "float32", "--use_cpu"]
    command = [sys.executable, "-m", "tropd", "serve", *words]
    with running(command, f"http://127.0.0.1:{port}", os.environ | {"OMP_NUM_THREADS": "1"}) as group:
        yield f"tropd://127.0.0.1:{port}", group


@contextmanager
def vllm_server(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """A stock vLLM: its address, its process group."""
    port, longest = free_port(), options.context + options.response + 1
    numbers = {"--port": port, "--max-model-len": longest, "--max-logprobs": options.k}
    words = ["--model", options.teacher, "--host", "127.0.0.1", "--served-model-name", "teacher"]
    words += ["--dtype", "float32", "--enforce-eager", "--enable-scale-out"]
    words += [str(word) for pair in numbers.items() for word in pair]
    command = [options.vllm, "-m", "vllm.entrypoints.openai.api_server", *words]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ENVIRONMENT
    with running(command, f"http://127.0.0.1:{port}", environment) as group:
        yield f"http://127.0.0.1:{port}/v1", group


def connected(url: str, tokenizer: Any) -> Any:
    """The teacher at an address."""
    args = SimpleNamespace(
        teacher_model_name=None,
        teacher_tokenizer=None,
        teacher_api_key_env=None,
        teacher_concurrency=16,
        teacher_timeout=1800.0,
        teacher_patience=1800.0,
        teacher_allow_remote=False,
        teacher_model_init_kwargs=None,
        teacher_chat_template="student",
        trust_remote_code=False,
    )
    return connect(url, args, student_tokenizer=tokenizer).teacher


# ---------------------------------------------------------------------- measurement


def group_seconds(group: int | None) -> float:
    """Processor seconds so far of a process group and of the children that it has waited for."""
    if group is None:
        return 0.0
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[2]) == group:
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


class Received:
    """Counts the bytes of answers."""

    def __init__(self) -> None:
        self.count = 0
        read = http.Client._read

        def counted(client: Any, response: Any, most: int) -> bytes:
            raw = read(client, response, most)
            self.count += len(raw)
            return raw

        http.Client._read = counted  # type: ignore[method-assign]  # this process measures and does nothing else


def measured(function: Callable[[], Any], group: int | None, received: Received) -> dict[str, float]:
    """Processor seconds here and there, bytes, wall seconds of one call."""
    before = time.process_time(), group_seconds(group), received.count, time.monotonic()
    function()
    after = time.process_time(), group_seconds(group), received.count, time.monotonic()
    here, there, size, wall = (b - a for a, b in zip(before, after, strict=True))
    return {"here": here, "server": there, "bytes": size, "wall": wall}


def two_passes(task: Task, teacher: Any) -> Any:
    """vLLM asked for the sampled token first, and for the top-k of the rows that have an outlier then."""
    task.score(teacher, k=0)
    by_row = task.wanted.view(len(task.contexts), -1).any(-1)
    rows = by_row.nonzero().squeeze(-1).tolist()
    return task.score(teacher, rows) if rows else None


def train(options: argparse.Namespace) -> None:
    """Steps of a recipe with its teacher here and behind `tropd serve`: what its scoring takes of the wall clock.

    Scoring while the student still writes could hide so much of a step, and no more.
    """
    recipe = yaml.safe_load(options.recipe.read_text())
    options.teacher = str(Path(locate(recipe["teacher"])).resolve())
    with own_server(options) as (url, _), tempfile.TemporaryDirectory() as folder:
        for name, teacher in (("in process", options.teacher), ("tropd serve", url)):
            out = Path(folder) / name.replace(" ", "_")
            fields = {"teacher": teacher, "output_dir": out, "max_steps": options.steps, "seed": options.seed}
            fields |= {"preflight_prompts": 0, "save_final_model": False, "rollout_log_steps": 0}
            words = [word for field, value in fields.items() for word in (f"--{field}", str(value))]
            command = [sys.executable, "-m", "tropd", "train", "--config", str(options.recipe), *words]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            shares = [share_of_teacher(entry) for entry in log if "speed/teacher" in entry][1:]
            step = statistics.median(entry["step_time"] for entry in log if "step_time" in entry)
            spread = f"{min(shares):.1%} to {max(shares):.1%}"
            print(f"{name:12} step {step:.2f} s, of it the teacher {statistics.median(shares):.1%} ({spread})")
    print(f"{options.steps} steps, the first left out; {machine()}, {commit()}")


def share_of_teacher(entry: dict[str, Any]) -> float:
    """Of a step's wall seconds, those that the teacher's scoring took."""
    tokens = sum(entry[f"regions/num_{region}"] for region in ("trust", "outlier", "guidance"))
    return float((tokens + entry["teacher/nonfinite_tokens"]) / entry["speed/teacher"] / entry["step_time"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--teacher", help="model folder")
    what.add_argument("--recipe", type=Path, help="train instead, and tell what the teacher takes of a step")
    parser.add_argument("--steps", type=int, default=8, help="of the recipe")
    parser.add_argument("--vllm", help="interpreter of an environment with vLLM")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--context", type=int, default=32, help="tokens")
    parser.add_argument("--response", type=int, default=128, help="tokens")
    parser.add_argument("--rows_per_pass", type=int, default=8)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--outliers", type=float, default=0.1, help="share of the tokens that want the top-k")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.recipe:
        train(options)
        return
    options.teacher = str(Path(options.teacher).resolve())
    torch.set_num_threads(1)
    received = Received()
    tokenizer = AutoTokenizer.from_pretrained(options.teacher)
    local = LocalTeacher(AutoModelForCausalLM.from_pretrained(options.teacher, dtype=torch.float32))
    task = make_task(options, len(tokenizer))
    with ExitStack() as servers:
        ways: dict[str, tuple[Callable[[], Any], int | None]] = {"in process": (lambda: task.score(local), None)}
        url, group = servers.enter_context(own_server(options))
        own = connected(url, tokenizer)
        ways["tropd serve"] = (lambda: task.score(own), group)
        check_same(task.score(local), task.score(own))
        if options.vllm:
            url, group = servers.enter_context(vllm_server(options))
            theirs = connected(url, tokenizer)
            ways["vLLM, k = 0"] = (lambda: task.score(theirs, k=0), group)
            ways[f"vLLM, k = {options.k}"] = (lambda: task.score(theirs), group)
            ways["vLLM, two passes"] = (lambda: two_passes(task, theirs), group)
        for function, _ in ways.values():
            function()
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for _ in range(options.repeats):
            for name, (function, group) in ways.items():
                runs[name].append(measured(function, group, received))
    report(options, task, runs)


def check_same(ours: Any, theirs: Any) -> None:
    """The teacher behind `tropd serve` has to be the one in this process to the last bit."""
    for name in ("logp", "entropy", "topk_index", "topk_ids", "topk_logp"):
        if not torch.equal(getattr(ours, name), getattr(theirs, name)):
            raise RuntimeError(f"tropd serve tells another {name} than the model in this process")


def report(options: argparse.Namespace, task: Task, runs: dict[str, list[dict[str, float]]]) -> None:
    """A table for people, everything as JSON."""
    print(f"{task.num_tokens} tokens, {int(task.wanted.sum())} of them with top-{task.k}; {machine()}")
    print(f"{'way':18} {'tokens / CPU s':>14} {'CPU s':>8} {'of it here':>10} {'bytes / token':>13}  spread of CPU s")
    for name, figures in runs.items():
        totals = [one["here"] + one["server"] for one in figures]
        total, here = statistics.median(totals), statistics.median(one["here"] for one in figures)
        size = statistics.median(one["bytes"] for one in figures) / task.num_tokens
        spread = f"{min(totals):.2f} to {max(totals):.2f}"
        print(f"{name:18} {task.num_tokens / total:14.0f} {total:8.2f} {here:10.2f} {size:13.1f}  {spread}")
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        record = {"settings": settings, "machine": machine(), "commit": commit(), "runs": runs}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def machine() -> str:
    """Processor, cores and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"


def commit() -> str:
    """What of this tree was measured."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
