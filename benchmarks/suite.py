"""All measurements of speed in one command, as ratios within the run, and what moved since an earlier one.

    python benchmarks/suite.py --json bench.json                          # on a CPU, less than fifteen minutes
    python benchmarks/suite.py --gpu --json gpu.json                      # on a GPU, about ten
    python benchmarks/suite.py --compare earlier.json bench.json          # measures nothing

Each part is a script of this folder with its own `--help`; the suite runs them one after another on one thread and
keeps their ratios: the output layer (seconds ÷ peer's, lower is better), rollouts (tokens per second ÷ the host's),
the whole step (÷ TRL's `DistillationTrainer`), and exponents of growth.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MOVED = 0.1
"""Ratios that differ by less than this share are noise on a shared machine."""

Command = list[str]

CPU: dict[str, Command] = {
    "head": ["head.py", "--vocabulary", "32768", "--tokens", "512", "--trust", "0.8", "--dtypes", "float32", "--cpu"],
    "rollouts": ["rollouts.py", "--rows", "16", "--repeats", "2", "--ways", "host", "ours"],
    "step": ["whole_step.py", "--turns", "1", "--steps", "4"],
    "growth": ["growth.py", "--points", "4", "--axes", "tokens", "rows", "vocabulary", "k"],
}
LARGE = ["--vocabulary", "151936", "--student", "1024x28", "--teacher", "2560x36", "--tokens", "2048", "--rows", "8"]
BFLOAT16 = ["--dtypes", "bfloat16", "--peers", "products", "trl", "fused"]
GPU: dict[str, Command] = {
    "head": ["head.py", "--tokens", "4096", "--trust", "0.8", *BFLOAT16],
    "step": ["whole_step.py", "--device", "cuda", "--turns", "1", "--steps", "2", "--methods", "gkd", "tropd", *LARGE],
}


def measure(parts: dict[str, Command], kept: Path | None) -> dict[str, Any]:
    """Run the parts; their ratios, records and seconds, kept in a file after each."""
    found: dict[str, Any] = {"platform": platform.platform(), "ratios": {}, "seconds": {}, "records": {}}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        for name, command in parts.items():
            file, began = Path(folder) / f"{name}.json", time.monotonic()
            print(f"\n# {name}: python benchmarks/{' '.join(command)}", flush=True)
            script = [sys.executable, "-W", "ignore", str(HERE / command[0]), *command[1:], "--json", str(file)]
            subprocess.run(script, env=environment, check=True)
            record = json.loads(file.read_text(encoding="utf-8"))
            found["records"][name] = record
            found["ratios"] |= {f"{name}: {key}": value for key, value in RATIOS[name](record).items()}
            found["seconds"][name] = round(time.monotonic() - began)
            if kept:
                kept.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def head_ratios(record: dict[str, Any]) -> dict[str, float]:
    ratios = {}
    for row in record["rows"]:
        setting, seconds = row["setting"], row["seconds"]
        for peer in ("products", "exact", "trl", "plain"):
            if peer in seconds:
                ratios[f"{setting['work']} {setting['dtype']} fused ÷ {peer}"] = seconds["fused"] / seconds[peer]
    return ratios


def rollout_ratios(record: dict[str, Any]) -> dict[str, float]:
    medians = {name: statistics.median(times) for name, times in record["seconds"].items()}
    return {"tokens per second ÷ host": medians["host"] / medians["ours"]}


def own_ratios(record: dict[str, Any]) -> dict[str, float]:
    return record["ratios"]


RATIOS = {"head": head_ratios, "rollouts": rollout_ratios, "step": own_ratios, "growth": own_ratios}


def moved(earlier: dict[str, float], later: dict[str, float]) -> list[str]:
    """A line for each ratio that moved, appeared or went.

    >>> moved({"a": 1.0, "b": 2.0, "c": 1.0}, {"a": 1.05, "b": 1.0, "d": 3.0})
    ['b: 2.00 -> 1.00 (-50%)', 'c: gone', 'd: new, 3.00']
    """
    lines = []
    for name in sorted(earlier.keys() | later.keys()):
        if name not in later:
            lines.append(f"{name}: gone")
        elif name not in earlier:
            lines.append(f"{name}: new, {later[name]:.2f}")
        elif abs(later[name] - earlier[name]) > MOVED * abs(earlier[name]):
            change = later[name] / earlier[name] - 1
            lines.append(f"{name}: {earlier[name]:.2f} -> {later[name]:.2f} ({change:+.0%})")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="the parts for a GPU")
    parser.add_argument("--parts", nargs="+", choices=CPU, help="only these")
    parser.add_argument("--json", type=Path, help="a file for everything that is measured")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("EARLIER", "LATER"), help="print what moved")
    options = parser.parse_args()
    if options.compare:
        earlier, later = (json.loads(path.read_text(encoding="utf-8"))["ratios"] for path in options.compare)
        print("\n".join(moved(earlier, later)) or f"Nothing moved by more than {MOVED:.0%}.")
        return
    parts = GPU if options.gpu else CPU
    found = measure({name: parts[name] for name in options.parts or parts if name in parts}, options.json)
    print("\nratios within this run")
    for name, value in found["ratios"].items():
        print(f"  {name}: {value:.2f}")
    print(f"{sum(found['seconds'].values())} s in all: {found['seconds']}")


if __name__ == "__main__":
    main()
