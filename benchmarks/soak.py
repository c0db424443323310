"""Thousands of steps of the shipped pair: what grows, what each step and each checkpoint costs at the end.

    OMP_NUM_THREADS=1 python benchmarks/soak.py --out FOLDER

Four to five minutes on one CPU core, nothing to download. Sampling is real, prefixes are written by the teacher, and
metrics, rollouts and checkpoints go to the disk. Every 50 steps, behind a garbage collection, the process is measured;
straight lines are laid through the last three quarters of the measurements. `soak.json` in the folder has all of it,
standard output the table that docs/reliability.md shows.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from tropd import TrOPDConfig, TrOPDTrainer
from tropd.proving_ground.domains import records
from tropd.proving_ground.family import GENERALIST, STUDENT, model_path
from tropd.training.checkpointing.checkpoints import checkpoints_in

UNDISTURBED = 1.03
"""Wall clock by processor time of steps with a core to themselves; beside another load, processor time grows too."""

PACKAGES = ("tropd", "torch", "transformers", "trl", "accelerate")


@dataclass(frozen=True)
class Quantity:
    """Something that is measured.

    Attributes:
        unit: of the measurements.
        allowed: growth per 1,000 steps that is still called flat; `None` where the quantity grows by design.
        share: is `allowed` a share of the mean?
    """

    unit: str
    allowed: float | None
    share: bool = False


QUANTITIES = {
    "log_history in memory": Quantity("MB", None),
    "memory of its own without log_history": Quantity("MB", 1.0),
    "resident memory without log_history": Quantity("MB", 1.0),
    "live tensors": Quantity("", 1.0),
    "objects of the garbage collector": Quantity("", 100.0),
    "open files": Quantity("", 0.5),
    "threads": Quantity("", 0.5),
    "step, processor": Quantity("ms", 0.03, share=True),
    "step, wall clock": Quantity("ms", 0.03, share=True),
    "log and checkpoint, processor": Quantity("ms", None),
    "metrics.jsonl": Quantity("kB", None),
    "trainer_state.json": Quantity("kB", None),
    "records of log_history": Quantity("", None),
    "rollout files": Quantity("", None),
    "rest of the checkpoint": Quantity("kB", 1.0),
}


# ---------------------------------------------------------------------- trends


@dataclass(frozen=True)
class Trend:
    """A straight line through measurements.

    Attributes:
        first: the first measurement that it is laid through.
        last: the last.
        slope: per 1,000 steps.
        error: the slope's standard error, as if the residuals were independent.
        verdict: in words.
    """

    first: float
    last: float
    slope: float
    error: float
    verdict: str


def trend(points: Sequence[tuple[int, float]], quantity: Quantity) -> Trend:
    """The line through the last three quarters of (step, measurement), and what it says.

    >>> trend([(50 * n, 7.0) for n in range(40)], Quantity("MB", 1.0)).verdict
    'flat'
    """
    used = points[len(points) // 4 :]
    slope, error = _line(used)
    return Trend(used[0][1], used[-1][1], slope, error, _verdict(used, slope, error, quantity))


def _line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Slope per 1,000 steps by least squares, and its standard error."""
    steps, values = [step / 1000 for step, _ in points], [value for _, value in points]
    slope, intercept = statistics.linear_regression(steps, values)
    squares = sum((value - slope * step - intercept) ** 2 for step, value in zip(steps, values, strict=True))
    spread = statistics.pvariance(steps) * len(steps)
    return slope, (squares / max(len(points) - 2, 1) / spread) ** 0.5


def _verdict(points: Sequence[tuple[int, float]], slope: float, error: float, quantity: Quantity) -> str:
    if quantity.allowed is not None:
        allowed = quantity.allowed * (statistics.fmean(value for _, value in points) if quantity.share else 1)
        if slope <= allowed:
            return "flat"
        return "grows" if slope > allowed + 2 * error else "unclear"
    half = len(points) // 2
    (early, early_error), (late, late_error) = _line(points[:half]), _line(points[half:])
    if slope <= 2 * error:
        return "does not grow"
    straight = late <= 1.25 * early + 2 * (early_error**2 + late_error**2) ** 0.5
    return "grows with the steps" if straight else "grows faster than the steps"


# ---------------------------------------------------------------------- measuring


class Measures(TrainerCallback):
    """Times every step and every log and checkpoint, and looks at the process each so many steps."""

    def __init__(self, every: int):
        self.every, self.points = every, []
        self.trainer: Any = None
        self._steps: list[tuple[float, float]] = []
        self._saves: list[float] = []
        self._began = self._ended = (0.0, 0.0)

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step and state.global_step % self.every == 0:
            self.points.append({"step": state.global_step, **self._measured(args, state)})
            print(json.dumps(self.points[-1]), file=sys.stderr, flush=True)
        self._began = _clocks()

    def on_step_end(self, args, state, control, **kwargs):
        self._ended = _clocks()
        self._steps.append(tuple(after - before for before, after in zip(self._began, self._ended, strict=True)))

    def on_save(self, args, state, control, **kwargs):
        self._saves.append(time.process_time() - self._ended[0])

    def _measured(self, args, state) -> dict[str, float | None]:
        folder, steps, saves = Path(args.output_dir), self._steps, self._saves
        self._steps, self._saves = [], []
        gc.collect()
        own, resident = _memory()
        history = _bytes_of(state.log_history)
        objects = gc.get_objects()
        checkpoint = _sizes(checkpoints_in(folder)[-1]) if checkpoints_in(folder) else {}
        return {
            "log_history in memory": history / 1e6,
            "memory of its own without log_history": (own - history) / 1e6,
            "resident memory without log_history": (resident - history) / 1e6,
            "live tensors": sum(issubclass(type(thing), torch.Tensor) for thing in objects),
            "objects of the garbage collector": len(objects),
            "open files": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "step, processor": 1e3 * statistics.median(step[0] for step in steps),
            "step, wall clock": 1e3 * statistics.median(step[1] for step in steps),
            "log and checkpoint, processor": 1e3 * statistics.median(saves) if saves else None,
            "metrics.jsonl": (folder / "metrics.jsonl").stat().st_size / 1e3,
            "trainer_state.json": checkpoint.pop("trainer_state.json", 0) / 1e3 or None,
            "records of log_history": len(state.log_history),
            "rollout files": len(list((folder / "rollouts").iterdir())),
            "rest of the checkpoint": sum(checkpoint.values()) / 1e3 or None,
        }


def _clocks() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def _memory() -> tuple[int, int]:
    """Bytes of anonymous pages, and all that the process has in memory.

    The unique set size would count a library's pages as well, but only while no other process has loaded the library.
    """
    kilobytes: dict[str, int] = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        kilobytes[name.rstrip(":")] = int(value)
    return 1024 * kilobytes["Anonymous"], 1024 * kilobytes["Rss"]


def _bytes_of(records: list[dict[str, Any]]) -> int:
    """Of the list, its records and their numbers; the names are shared."""
    return sys.getsizeof(records) + sum(
        sys.getsizeof(record) + sum(map(sys.getsizeof, record.values())) for record in records
    )


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}


# ---------------------------------------------------------------------- the run


def soak(out: Path, *, steps: int, every: int, save: int, seed: int = 0) -> list[dict[str, Any]]:
    """Train the shipped pair; returns what was measured each `every` steps."""
    measures = Measures(every)
    student, teacher = model_path(STUDENT), model_path(GENERALIST)
    problems = records("mathematics", "train", 512, seed=0, level=3)
    trainer = TrOPDTrainer(
        AutoModelForCausalLM.from_pretrained(student),
        AutoModelForCausalLM.from_pretrained(teacher),
        args=configuration(out, steps, save, seed),
        train_dataset=Dataset.from_list([{"prompt": problem["prompt"]} for problem in problems]),
        processing_class=AutoTokenizer.from_pretrained(student),
        teacher_processing_class=AutoTokenizer.from_pretrained(teacher),
        callbacks=[measures],
    )
    trainer.train()
    return measures.points


def configuration(out: Path, steps: int, save: int, seed: int) -> TrOPDConfig:
    """Two prompts a step, each step as much work as any other, and a record of every step."""
    return TrOPDConfig(
        str(out / "run"),
        method="tropd",
        max_steps=steps + 1,  # the last measurement is taken when another step begins
        per_device_train_batch_size=8,
        max_completion_length=12,
        learning_rate=1e-4,
        guidance_schedule="constant",
        guidance_min_tail=6,
        collapse_patience=None,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        rollout_log_steps=10,
        save_strategy="steps",
        save_steps=save,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        seed=seed,
    )


def trends(points: list[dict[str, Any]]) -> dict[str, Trend]:
    """One for each quantity that was measured more than five times."""
    columns = {name: [(point["step"], point[name]) for point in points if _counts(name, point)] for name in QUANTITIES}
    return {name: trend(column, QUANTITIES[name]) for name, column in columns.items() if len(column) > 5}


def _counts(name: str, point: dict[str, Any]) -> bool:
    """Was it measured, and, if it is a step's time, without another process that took the core meanwhile?"""
    disturbed = point["step, wall clock"] > UNDISTURBED * point["step, processor"]
    return point[name] is not None and not (name.startswith("step, ") and disturbed)


def table(found: dict[str, Trend]) -> str:
    """For people, and for the documentation."""
    rows = [
        f"| {name} | {_number(line.first, name)} | {_number(line.last, name)} | {line.slope:+.3g} ± {line.error:.1g} "
        f"| {line.verdict} |"
        for name, line in found.items()
    ]
    return "\n".join(["| | at a quarter | at the end | per 1,000 steps | |", "|---|---|---|---|---|", *rows])


def _number(value: float, name: str) -> str:
    unit = QUANTITIES[name].unit
    return f"{value:,.1f} {unit}" if unit else f"{value:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the run and soak.json")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=50, help="steps between measurements")
    parser.add_argument("--save", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    points = soak(options.out, steps=options.steps, every=options.every, save=options.save, seed=options.seed)
    found = trends(points)
    result = {
        "settings": {name: str(value) for name, value in vars(options).items()},
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "points": points,
        "trends": {name: asdict(line) for name, line in found.items()},
    }
    (options.out / "soak.json").write_text(json.dumps(result, indent=2) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
