"""How the cost of a step grows with tokens, rows, vocabulary, k, rollouts of a prompt, prefix share and processes.

    OMP_NUM_THREADS=1 python benchmarks/growth.py --json growth.json --plot docs/assets/growth.svg

One quantity is doubled again and again while the others stay; each point is a process of its own: milliseconds of
processor time of each stage of a step (one thread, means of the steps after the first; on several processes, of the
first of them), and its peak memory above what it held before it trained. Answers end at random, so the first two are
counted in the tokens that the student wrote. The exponent is the slope of log cost over log size, a least-squares fit
to the three largest points, where fixed costs have faded most: 1 is linear.
"""

import argparse
import json
import math
import multiprocessing
import os
import socket
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from whole_step import SHOWN, Clock, Sizes, ours, prompts

BASE: dict[str, Any] = {"student": (128, 2), "teacher": (192, 2), "vocabulary": 8192, "rows": 8, "tokens": 128}
STEPS = 4
AXES: dict[str, list[Any]] = {
    "tokens": [64, 128, 256, 512, 1024],
    "rows": [4, 8, 16, 32, 64],
    "vocabulary": [4096, 8192, 16384, 32768, 65536],
    "k": [16, 64, 256, 1024],
    "rollouts of a prompt": [1, 2, 4, 8],
    "prefix share": [0.125, 0.25, 0.5],
    "processes": [1, 2],
}
WRITTEN = {"tokens": "tokens an answer may have", "rows": "rows"}
COSTS = ("step", *SHOWN, "update", "memory")


def point(axis: str, value: Any, rank: int, folder: str) -> dict[str, float]:
    """Costs of one point on this process."""
    sizes, settings, data = dict(BASE, device="cpu"), {"guidance_schedule": "none"}, None
    if axis in ("tokens", "rows", "vocabulary"):
        sizes[axis] = value
    elif axis == "k":
        settings["fkl_top_k"] = value
    elif axis == "rollouts of a prompt":
        settings["num_generations"] = value
    elif axis == "prefix share":
        settings = {"guidance_schedule": "constant"}
        data = with_prefixes(int(value * sizes["tokens"]), sizes["rows"] * STEPS)
    else:
        sizes["rows"] //= value
    before = memory("VmRSS")
    clock = ours("tropd", Sizes(**sizes), STEPS, Path(folder), data, **settings)
    written = statistics.mean(step["tokens"] for step in clock.steps[1:])
    size = written if axis in WRITTEN else value
    return milliseconds(clock) | {"memory": memory("VmHWM") - before, "size": size}


def with_prefixes(length: int, count: int) -> Dataset:
    """Prompts with a teacher response of which all but the last token become the prefix."""
    generator = torch.Generator().manual_seed(1)
    responses = torch.randint(2, 1000, (count, length + 1), generator=generator).tolist()
    return prompts(count).add_column("teacher_response", responses)


def milliseconds(clock: Clock) -> dict[str, float]:
    """Means over the steps after the first."""
    steps = clock.steps[1:]
    means = {name: 1e3 * statistics.mean(step.get(name, 0.0) for step in steps) for name in ("step", *SHOWN)}
    return means | {"update": means["step"] - sum(means[name] for name in SHOWN)}


def memory(field: str) -> float:
    """Megabytes of this process: `VmRSS` now, `VmHWM` at most so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/self/status has no {field}")


# ---------------------------------------------------------------------- processes


def measured(axis: str, value: Any) -> dict[str, float]:
    """A point in a process of its own, or in as many as it says."""
    world, port = (value if axis == "processes" else 1), free_port()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        arguments = [(axis, value, rank, world, port, folder) for rank in range(world)]
        workers = [context.Process(target=worker, args=one) for one in arguments]
        for one in workers:
            one.start()
        for one in workers:
            one.join()
        if any(one.exitcode for one in workers):
            raise RuntimeError(f"{axis} = {value} failed; see above")
        return json.loads((Path(folder) / "costs.json").read_text())


def worker(axis: str, value: Any, rank: int, world: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    if world > 1:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        os.environ.update({name: str(number) for name, number in (address | ranks).items()})
    costs = point(axis, value, rank, folder)
    if rank == 0:
        (Path(folder) / "costs.json").write_text(json.dumps(costs))
    if world > 1:
        torch.distributed.barrier()
        os._exit(0)  # gloo's threads may abort an interpreter's end


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---------------------------------------------------------------------- exponents and pictures


def exponents(points: list[dict[str, float]]) -> dict[str, float]:
    """Slope of log cost over log size of the three largest points; a stage that costs nothing has none."""
    largest = sorted(points, key=lambda one: one["size"])[-3:]
    sizes = [math.log(one["size"]) for one in largest]
    lines = {cost: [one[cost] for one in largest] for cost in COSTS}
    return {
        cost: statistics.linear_regression(sizes, [math.log(value) for value in values]).slope
        for cost, values in lines.items()
        if min(values) > 0
    }


def show(axis: str, points: list[dict[str, float]]) -> None:
    print(
        f"\n| {label(axis)} | " + " | ".join(f"{cost}, {'MB' if cost == 'memory' else 'ms'}" for cost in COSTS) + " |"
    )
    print("|---" * (len(COSTS) + 1) + "|")
    for costs in points:
        print(f"| {number(costs['size'])} | " + " | ".join(f"{costs[cost]:,.0f}" for cost in COSTS) + " |")
    found = exponents(points)
    print(
        "| exponent | " + " | ".join(f"{found[cost]:.2f}" if cost in found else "" for cost in COSTS) + " |", flush=True
    )


def label(axis: str) -> str:
    """What a point's size counts."""
    return f"tokens written, by {WRITTEN[axis]}" if axis in WRITTEN else axis


def number(size: float) -> str:
    """A size for people: a whole number, or a share."""
    return f"{size:,.0f}" if size >= 1 else f"{size:g}"


def plot(record: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    axes = [axis for axis in record if axis != "processes"]
    figure, places = pyplot.subplots(2, math.ceil(len(axes) / 2), figsize=(11, 6.5), layout="constrained")
    for axis, place in zip(axes, places.flat, strict=False):
        points = record[axis]["points"]
        values = [one["size"] for one in points]
        for cost in (*SHOWN, "update"):
            if points[0][cost] > 0:
                place.plot(values, [one[cost] for one in points], marker="o", markersize=3, label=cost)
        linear = [points[-1]["step"] * value / values[-1] for value in values]
        place.plot(values, [one["step"] for one in points], color="black", marker="o", markersize=3, label="step")
        place.plot(values, linear, color="grey", linestyle=":", label="linear")
        place.set(xscale="log", yscale="log", xlabel=label(axis), ylabel="ms of processor time a step")
        place.set_xticks(values, [number(value) for value in values])
        place.minorticks_off()
        draw_memory(place, values, points)
    for place in places.flat[len(axes) :]:
        place.axis("off")
    places.flat[0].legend(fontsize="small", frameon=False, loc="upper left")
    figure.savefig(path)


def draw_memory(place: Any, values: list[float], points: list[dict[str, float]]) -> None:
    """Megabytes, against an axis of their own on the right."""
    beside = place.twinx()
    beside.plot(values, [one["memory"] for one in points], color="tab:brown", linestyle="--")
    beside.set(yscale="log", ylabel="MB of memory (dashed)", ylim=(50, 1000))
    beside.set_yticks([100, 200, 500], ["100", "200", "500"])
    beside.minorticks_off()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--points", type=int, default=9, help="at most so many, the smallest ones")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--plot", type=Path, help="an SVG file")
    options = parser.parse_args()
    record = {}
    for axis in options.axes:
        values = AXES[axis][: options.points]
        points = [measured(axis, value) for value in values]
        show(axis, points)
        record[axis] = {"values": values, "points": points, "exponents": exponents(points)}
    if options.json:
        ratios = {
            f"{axis}: {cost}": one["exponents"][cost] for axis, one in record.items() for cost in ("step", "memory")
        }
        options.json.write_text(json.dumps({"base": BASE, "axes": record, "ratios": ratios}, indent=2) + "\n")
    if options.plot:
        plot(record, options.plot)


if __name__ == "__main__":
    main()
