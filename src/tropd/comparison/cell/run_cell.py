"""One cell: train a student with one method until its tokens are written, measure it, and record the result."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback

from ...data.files import Record
from ...data.table import GrowingTable
from ...proving_ground.storeroom import Storeroom
from ...run.prepare import hardware_defaults
from ...teacher.names import COLUMN
from ...training.config import TrOPDConfig
from ...training.guards.errors import NotFinite, RolloutsCollapsed
from ...training.trainer import TrOPDTrainer
from ..cells import GRID, Cell, budget_of
from ..plan import Plan, Setting
from .prepare import make_ruler, point_texts, read_setting, student_folder
from .scores import Ruler
from .texts import Text
from .token_budget import Forecast, TokenBudget, sentence, tail_of_turns

ROLLOUT_LOGS = 6
"""Rollouts are logged about this many times in a run."""


class Tell(Protocol):
    """Receives the progress of a cell: a message, and the finished part of its training."""

    def __call__(self, words: str, share: float | None = None) -> None: ...


class TellSteps(TrainerCallback):
    """Tells each step, of as many as are planned by then."""

    def __init__(self, tell: Tell):
        self.tell = tell

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        share = min(state.global_step / state.max_steps, 1.0)
        self.tell(f"step {state.global_step} of about {state.max_steps}", share)


class Points:
    """Measures a model's scores when each `1/number` of the budget is written, and at the `start`, the untrained
    student's.

    `found` has step, student tokens and scores of each point; `seconds` what measuring took. `trainer` is set once it
    is built.
    """

    trainer: Any = None

    def __init__(self, measure: Callable[[Any], dict[str, float]], budget: int, number: int, start: dict[str, float]):
        self.measure, self.budget, self.number = measure, budget, number
        self.found: list[dict[str, Any]] = [{"step": 0, "student_tokens": 0, "scores": start}] if number else []
        self.seconds = 0.0

    def at(self, step: int, written: float) -> None:
        """After step `step`, when the student has written this many tokens."""
        # Half a step's tokens may be missing at the end of a run, hence the small allowance.
        due = bool(self.number) and written >= 0.98 * len(self.found) * self.budget / self.number
        if not due or len(self.found) > self.number:
            return
        started = time.perf_counter()
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        training = model.training
        try:
            scores = self.measure(model.eval())
        finally:
            model.train(training)
        self.found.append({"step": step, "student_tokens": round(written), "scores": scores})
        self.seconds += time.perf_counter() - started


def run_cell(
    plan: Plan, cell: Cell, setting_folder: Path, folder: Path, tell: Tell = lambda words, share=None: None
) -> dict[str, Any]:
    """Train in `folder` and measure once: a cell of the grid on validation prompts, a reported one on test prompts.

    `tell` receives progress.
    """
    tell("loading models")
    setting = plan.settings[cell.setting]
    texts, before = read_setting(setting_folder)
    ruler = make_ruler(plan, setting, setting_folder)
    started = time.perf_counter()
    budget = _budget(plan, cell, texts["train"])
    trainer = make_trainer(plan, cell, student_folder(setting, setting_folder), ruler, texts["train"], budget, folder)
    points = _points(plan, cell, ruler, point_texts(plan, setting, texts["validation"]), before["point"], trainer)
    budget.on_written = points.at
    trainer.expect_endings(before["student"].get("ended", 0.0))
    trainer.add_callback(TellSteps(tell))
    failure = _train(trainer, budget)
    trained = time.perf_counter()
    tell("measuring", 1.0)
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    # As the model would be used: it ends where its generation_config says.
    measured = ruler.measure(model, texts["validation" if cell.kind == GRID else "test"], trainer.eos_token_ids)
    return {
        **asdict(cell),
        "failure": failure,
        "error": None,
        "steps": trainer.state.global_step,
        "student_tokens": round(budget.written),
        "prefix_tokens": round(budget.read),
        "train_seconds": round(trained - started - points.seconds, 1),
        "seconds": round(time.perf_counter() - started, 1),
        "points": points.found,
        "scores": measured.scores,
        "right": measured.right,
        **({"sampled": measured.sampled} if measured.sampled else {}),
    }


def make_trainer(
    plan: Plan, cell: Cell, student: str, ruler: Ruler, texts: Sequence[Text], budget: TokenBudget, folder: Path
) -> TrOPDTrainer:
    """The trainer of a cell; for one seed the prompts come in the same order whatever the method is."""
    setting, parts = plan.settings[cell.setting], dict(plan.methods[cell.label])
    parts.pop("learning_rate", None)  # the cell has it
    args = TrOPDConfig(
        **{
            "output_dir": str(folder),
            "method": parts.pop("method", cell.label),
            "seed": cell.seed,
            "learning_rate": cell.learning_rate,
            "max_steps": budget.most_steps,
            "per_device_train_batch_size": plan.rows_per_step,
            "num_generations": plan.rollouts_per_prompt,
            "max_completion_length": plan.max_length,
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "save_final_model": False,
            "gradient_checkpointing": False,
            "rollout_log_steps": 0 if cell.kind == GRID else max(1, round(budget.planned / ROLLOUT_LOGS)),
            "rollouts_per_log": 2,
            **hardware_defaults(plan.trainer),
            **plan.trainer,
            **parts,
        }
    )
    trainer = TrOPDTrainer(
        student,
        ruler.teachers if setting.teachers else ruler.teachers[setting.parts[0]],
        args=args,
        train_dataset=_dataset(texts, setting),
        processing_class=AutoTokenizer.from_pretrained(student),
        teacher_processing_class=ruler.tokenizer,
        environment_factory=Storeroom if setting.environment else None,
        callbacks=[budget],
    )
    trainer.remove_callback(PrinterCallback)  # metrics.jsonl has the same numbers
    return trainer


def _dataset(texts: Sequence[Text], setting: Setting) -> Dataset:
    """The training prompts; where there are several teachers, a part's teacher has the part's name.

    Episodes are kept as JSON, in which their calls stay as they were made.
    """
    rows = [text.as_row() | ({COLUMN: text.part} if setting.teachers else {}) for text in texts]
    if not setting.environment:
        return Dataset.from_list(rows)
    table = GrowingTable()
    table.add([Record(f"episode {number}", row) for number, row in enumerate(rows)])
    return table.dataset()[0]


def _budget(plan: Plan, cell: Cell, texts: Sequence[Text]) -> TokenBudget:
    changed = {**plan.trainer, **plan.methods[cell.label]}
    method, tail = plan.method_of(cell.label), None
    if plan.settings[cell.setting].environment and changed.get("guidance_unit") != "tokens":
        tail = partial(
            tail_of_turns,
            [text.turn_lengths for text in texts],
            cap=plan.max_length if method.guidance_length == "cap" else None,
            is_mixed=changed.get("guidance_pattern") == "mixed",
        )
        if changed.get("guidance_pattern") == "trust":  # which nobody knows before: as if the teacher took no turn
            tail = partial(lambda own, _: own, tail(0.0))
    forecast = Forecast(
        method,
        [max(sum(text.turn_lengths) - 1, 1) for text in texts],
        plan.max_length,
        plan.rows_per_step,
        changed.get("guidance_min_tail", 1),
        tail,
    )
    return TokenBudget(forecast, budget_of(plan, cell.kind))


def _points(
    plan: Plan, cell: Cell, ruler: Ruler, texts: list[Text], start: dict[str, float], trainer: TrOPDTrainer
) -> Points:
    """Accuracy is followed in reported runs alone."""
    number = 0 if cell.kind == GRID or not texts or not plan.points else plan.points
    points = Points(
        lambda model: ruler.accuracy(model, texts, trainer.eos_token_ids), plan.student_tokens, number, start
    )
    points.trainer = trainer
    return points


def _train(trainer: TrOPDTrainer, budget: TokenBudget) -> str | None:
    """What ended the run early, as a finding about the method, published with the cell; anything else travels."""
    try:
        trainer.train()
    except (RolloutsCollapsed, NotFinite) as failure:
        return str(failure)
    return sentence(budget.written, budget.budget, trainer.state.global_step) if budget.unspent else None
