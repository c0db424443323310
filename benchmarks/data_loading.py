"""Memory and time of loading prompts with teacher responses as token ids, as `tropd generate` writes them.

    python benchmarks/data_loading.py                     # 2,000 rows of 4,096 tokens
    python benchmarks/data_loading.py 10000 4096 --format parquet

Each load is a process of its own. Peak is its largest resident memory less what it was when one row, and with it the
libraries, had been loaded. Arrow is what the data set takes in the end. CPU seconds do not count neighbours on a shared
machine; seconds do. With PYTHONPATH=OTHER/src another checkout is measured.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

VOCABULARY = 151_643
FORMATS = ("jsonl", "json", "parquet")


def rows_of(rows: int, tokens: int) -> Iterator[dict[str, Any]]:
    """Rows like those of `tropd generate`: about four characters of text to a token."""
    draw = random.Random(0)
    pool = [draw.randrange(VOCABULARY) for _ in range(100_003)]
    for row in range(rows):
        start = draw.randrange(len(pool))
        ids = [pool[(start + i) % len(pool)] for i in range(tokens)]
        yield {
            "prompt": f"What is {row} + {draw.randrange(10**6)}? Think step by step, and put the answer in a box.",
            "answer": str(row),
            "teacher_response": ids,
            "teacher_response_text": "word" * tokens,
            "teacher_response_ended": True,
        }


def write(path: Path, rows: int, tokens: int) -> None:
    """A file of one of the formats."""
    if path.suffix == ".parquet":
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        every_row, writer = rows_of(rows, tokens), None
        while group := list(islice(every_row, 1_000)):
            table = pa.Table.from_pylist(group)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
        if writer:
            writer.close()
        return
    before, between, after = ("[\n", ",\n", "\n]\n") if path.suffix == ".json" else ("", "\n", "\n")
    with path.open("w", encoding="utf-8") as stream:
        for number, row in enumerate(rows_of(rows, tokens)):
            stream.write((between if number else before) + json.dumps(row))
        stream.write(after)


def measure(path: Path, warm_up: Path) -> dict[str, float]:
    """Load a file in this process."""
    from tropd.data import load_prompts

    load_prompts(warm_up)
    before, started, cpu = _peak(), time.perf_counter(), time.process_time()
    data = load_prompts(path)
    return {
        "peak": _peak() - before,
        "arrow": data.dataset.data.nbytes,
        "cpu_seconds": time.process_time() - cpu,
        "seconds": time.perf_counter() - started,
    }


def _peak() -> int:
    """Largest resident memory of this process; `ru_maxrss` would begin with what the process that started it took."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int, nargs="?", default=2_000)
    parser.add_argument("tokens", type=int, nargs="?", default=4_096, help="of each response")
    parser.add_argument("--format", choices=FORMATS, default="jsonl")
    parser.add_argument("--measure", nargs=2, type=Path, metavar=("FILE", "WARM_UP"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path, warm_up = (Path(folder) / f"{name}.{options.format}" for name in ("prompts", "warm_up"))
        write(path, options.rows, options.tokens)
        write(warm_up, 1, 1)
        command = [sys.executable, __file__, "--measure", str(path), str(warm_up)]
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        size = path.stat().st_size
    found, total = json.loads(done.stdout), options.rows * options.tokens
    print(
        f"{options.format} {options.rows:,} x {options.tokens:,} ({size / 1e6:,.0f} MB): "
        f"peak {found['peak'] / 1e6:,.0f} MB ({found['peak'] / total:.1f} bytes a token), "
        f"Arrow {found['arrow'] / 1e6:,.0f} MB, ratio {found['peak'] / found['arrow']:.1f}; "
        f"{found['cpu_seconds']:.1f} s CPU, {found['seconds']:.1f} s"
    )


if __name__ == "__main__":
    main()
