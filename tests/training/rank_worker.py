"""Runs every scenario on this rank's share of eight rollouts; rank 0 writes what all ranks saw.

    python rank_worker.py OUT plain|ddp|fsdp2|zero2|zero3 MICRO_BATCHES SCENARIO...

Run by `test_ranks.py`, alone or through `torch.distributed.run`.
"""

import gc
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, gather_object
from peft import LoraConfig
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training import tiny
from training.tiny import EOS, PROMPTS, Recorder, full, recorded
from tropd.preflight.probe import probe

SUMS = Path(__file__).resolve().parents[2] / "recipes/data/sums.jsonl"
SHARDED = ("fsdp2", "zero2", "zero3")
GUIDED_ROWS = [{"prompt": prompt, "teacher_response": "xyz+"} for prompt in PROMPTS]
SGD = {"optim": "sgd", "learning_rate": 0.05}
ADAM = {"learning_rate": 1e-2, "adam_epsilon": 1e-3}
"""AdamW divides by gradients of any size: with a small epsilon, rounding in one near zero would move a weight as far as
a real one."""


@dataclass(frozen=True)
class Scenario:
    """One training that must not depend on how its eight rows are split.

    Attributes:
        method: name of the method.
        student, teacher: make the models; without a maker the teacher is the student's own base.
        rows: of the data set.
        rollouts: scripted rollouts of the eight rows, from the pair; `None` samples for real.
        settings: of the configuration.
        options: of the trainer.
        resumed: several ranks stop after the first step, and fresh ones go on from its checkpoint.
        probed: the pair is looked at when training begins.
    """

    method: str = "tropd"
    student: Callable = lambda: tiny.llama(seed=1)
    teacher: Callable | None = lambda: tiny.llama(seed=2)
    rows: list[dict[str, Any]] = field(default_factory=lambda: GUIDED_ROWS)
    rollouts: Callable[[Any, Any], list[list[int]]] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    resumed: bool = False
    probed: bool = False


def one_step(method: str, **settings: Any) -> Scenario:
    return Scenario(method, rollouts=lambda *_: recorded(8), settings={"max_steps": 1, **SGD, **settings})


def extreme(outliers: bool) -> Callable[[Any, Any], list[int]]:
    """A rollout of tokens that the teacher finds far less likely than the student does, or far more."""

    def write(student: Any, teacher: Any, prompt: list[int]) -> list[int]:
        written: list[int] = []
        for _ in range(6):
            ids = torch.tensor([[*prompt, *written]])
            ratio = (teacher(ids).logits - student(ids).logits)[0, -1].log_softmax(-1)
            written.append(int((ratio if not outliers else -ratio)[4:50].argmax()) + 4)
        return written

    return write


def halves(first: Callable, second: Callable) -> Callable[[Any, Any], list[list[int]]]:
    """Rollouts of the first rank's four rows by one writer, of the second rank's by another."""

    def write(student: Any, teacher: Any) -> list[list[int]]:
        prompts = tiny.groups()
        return [(first if row < 4 else second)(student, teacher, prompt) for row, prompt in enumerate(prompts)]

    return torch.no_grad()(write)


def nothing(student: Any, teacher: Any, prompt: list[int]) -> list[int]:
    """An empty answer: the end of the sequence at once."""
    return [EOS]


def cut_off(student: Any, teacher: Any, prompt: list[int]) -> list[int]:
    """An answer that fills the budget without an end, so that `mask_truncated_completions` leaves it out."""
    return list(range(4, 14))


def lora() -> LoraConfig:
    """A new one each time: the trainer may write into it."""
    return LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)


def ending(write: Callable) -> Callable:
    """The same answer with an end, so that it does not count as truncated."""
    return lambda *given: [*write(*given), EOS]


def several() -> dict[str, Any]:
    """Two teachers of one kind and different sizes; the third has no row in any batch."""
    return {"math": tiny.llama(2), "code": tiny.llama(3, rows=72, width=24), "idle": tiny.llama(4)}


# Each rank has the rows of one prompt, and so of one teacher.
OWNED_ROWS = [{**row, "teacher": ("math", "code")[number % 2]} for number, row in enumerate(GUIDED_ROWS)]

HARD = {"gate": "hard", "outlier_tau": -0.5, "guidance_schedule": "none", "max_steps": 1, **SGD}

SCENARIOS: dict[str, Scenario] = {
    **{method: one_step(method) for method in ("opd", "entropy_opd", "eopd", "reopold", "jsd")},
    "gkd": one_step("gkd", shard_teacher=False),
    "tropd": Scenario(settings={"max_steps": 3, **SGD}),
    "tied": Scenario(student=lambda: tiny.qwen(1), teacher=lambda: tiny.qwen(2), settings={"max_steps": 3, **SGD}),
    "adamw": Scenario(settings={"max_steps": 3, **ADAM}),
    "scaled": Scenario("tv_opd", settings={"max_steps": 3, **SGD}),
    "per_region": Scenario(settings={"max_steps": 2, "reduction": "per_region", **SGD}),
    "clipped": Scenario(settings={"max_steps": 2, "max_grad_norm": 0.1, **SGD}),
    "cycles": Scenario(settings={"max_steps": 2, "num_iterations": 2, **SGD}),
    "checkpointing": Scenario(settings={"max_steps": 2, "gradient_checkpointing": True, **SGD}),
    # The adapter alone makes the difference; the teacher is a copy of its base, then the base itself.
    "lora": Scenario(teacher=lambda: tiny.llama(1), settings={"max_steps": 3, **SGD}, options={"peft_config": lora}),
    "base": Scenario(teacher=None, settings={"max_steps": 3, **SGD}, options={"peft_config": lora}),
    "bf16": Scenario(rollouts=lambda *_: recorded(8), settings={"max_steps": 2, "bf16": True, **SGD}),
    "resumed": Scenario(
        settings={
            "max_steps": 3,
            "learning_rate": 1e-2,
            "adam_epsilon": 1e-3,
            "save_strategy": "steps",
            "save_steps": 1,
        },
        resumed=True,
    ),
    "probed": Scenario(settings={"max_steps": 3, **SGD}, probed=True),
    "teachers": Scenario(
        teacher=several, rows=OWNED_ROWS, settings={"max_steps": 3, "teacher_batch_size": 3, **SGD}, probed=True
    ),
    "teachers' heads": replace(one_step("gkd", shard_teacher=False, jsd_beta=0.3), teacher=several, rows=OWNED_ROWS),
    "replicated": Scenario(settings={"max_steps": 2, "shard_teacher": False, **SGD}),
    "no outliers": Scenario(rollouts=halves(extreme(outliers=True), extreme(outliers=False)), settings=HARD),
    "no trusted": Scenario(rollouts=halves(extreme(outliers=False), extreme(outliers=True)), settings=HARD),
    "nothing": Scenario(
        rollouts=halves(ending(extreme(outliers=False)), cut_off),
        settings={"mask_truncated_completions": True, **HARD},
    ),
    "benchmarks": Scenario(
        rollouts=lambda *_: recorded(8),
        settings={
            "max_steps": 2,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "eval_benchmarks": [f"{SUMS}@tropd.proving_ground.domains:reward"],
            "eval_benchmarks_max_problems": 5,
            "eval_benchmarks_samples": 3,
            "eval_benchmarks_temperature": 1.0,
            "eval_benchmarks_max_new_tokens": 12,
            **SGD,
        },
    ),
    "empty": Scenario(rollouts=halves(extreme(outliers=False), nothing), settings={**HARD, "collapse_share": 0.5}),
}


def batches_of(trainer: Any) -> list[dict[int, dict[str, Any]]]:
    """What every batch that this rank builds knows of its rows, by the row's number in the step."""
    seen: list[dict[int, dict[str, Any]]] = []
    build = trainer._build_batch

    def and_note(inputs: Any) -> Any:
        parts = build(inputs)
        seen.append({rollout.row: facts for part in parts for rollout, facts in rows_of(part)})
        return parts

    trainer._build_batch = and_note
    return seen


def rows_of(part: Any) -> list[tuple[Any, dict[str, Any]]]:
    """Each row of a micro-batch with its tokens' signals."""
    rows, first = [], 0
    for rollout in part.rollouts:
        tokens = slice(first, first := first + sum(rollout.scored))
        names = ("rollout_logp", "teacher_logp", "trust_weight", "outlier_weight", "guidance_mask")
        signals = {name: getattr(part.signals, name)[tokens].clone() for name in names}
        rows.append((rollout, {"response": rollout.response, "prefix": rollout.prefix_length, **signals}))
    return rows


class StopAfter(TrainerCallback):
    """Ends a run after a step, as a signal does."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def built(out: Path, scenario: Scenario, micro_batches: int, *callbacks: TrainerCallback) -> Any:
    """A trainer for this rank's share of the scenario's rows."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    student, share = scenario.student(), 8 // world
    teacher = student if scenario.teacher is None else scenario.teacher()
    script = None
    if scenario.rollouts is not None:
        script = tiny.replay(scenario.rollouts(student, teacher)[rank * share :][:share])
    return tiny.build(
        out,
        student,
        teacher,
        scenario.method,
        script=script,
        rows=scenario.rows,
        callbacks=callbacks,
        trainer_options={name: make() for name, make in scenario.options.items()},
        per_device_train_batch_size=share // micro_batches,
        gradient_accumulation_steps=micro_batches,
        **scenario.settings,
    )


def run(out: Path, scenario: Scenario, micro_batches: int) -> dict[str, Any]:
    """The scenario on this rank, and what all ranks saw of it."""
    recorder, checkpoint = Recorder(), None
    if scenario.resumed and "RANK" in os.environ:
        built(out, scenario, micro_batches, StopAfter(1)).train()
        checkpoint = str(out / "checkpoint-1")
    probes = Probes()
    trainer = probes.trainer = built(out, scenario, micro_batches, recorder, *([probes] if scenario.probed else []))
    batches = batches_of(trainer)
    before = teacher_weights(trainer)
    trainer.train(resume_from_checkpoint=checkpoint)
    after = teacher_weights(trainer)
    trainer.save_model(str(out / "saved"))
    everyone = gather_object([batches])
    return {
        "kind": str(trainer.accelerator.distributed_type),
        "teacher kind": type(next(iter(trainer.teachers.by_name.values())).forward).__name__,
        "teacher units": units_of(next(iter(trainer.teachers.by_name.values())).model),
        "batches": [
            {row: part[row] for rank_batches in everyone for part in [rank_batches[n]] for row in sorted(part)}
            for n in range(len(batches))
        ],
        "gradients": [step.gradients for step in recorder.steps],
        "weights": {} if trainer.is_deepspeed_enabled else recorder.steps[-1].weights,
        "saved": load_file(out / "saved" / file) if (file := saved_in(out / "saved")) else {},
        "probed": probes.tokens,
        "logs": [entry for entry in trainer.state.log_history if "loss" in entry],
        "evaluated": [entry for entry in trainer.state.log_history if "eval_benchmark/sums/accuracy" in entry],
        "guard": gather_object([(trainer.guard.steps_in_a_row, trainer.guard.best_ended_share)]),
        "teacher moved": max(float((after[name] - before[name]).abs().max()) for name in before),
    }


class Probes(TrainerCallback):
    """Probes the pair when training begins, as `tropd train` does."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.tokens: dict[str, Any] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.tokens = vars(probe(self.trainer, list(self.trainer.train_dataset)[:2]).tokens)


def teacher_weights(trainer: Any) -> dict[str, Any]:
    """Copies of the frozen weights; the student's adapter is none of them where its base is the teacher."""
    return {
        f"{owner} {name}": full(p).clone()
        for owner, teacher in trainer.teachers.by_name.items()
        for name, p in teacher.model.named_parameters()
        if "lora" not in name
    }


def units_of(model: Any) -> int:
    """How many parts FSDP2 shards a model in."""
    return sum(isinstance(module, FSDPModule) for module in model.modules())


def saved_in(folder: Path) -> str | None:
    """The file of weights that rank 0 wrote."""
    return next((path.name for path in folder.glob("*.safetensors")), None)


def shard_on_cpu(kind: str) -> dict[str, Any]:
    """Have accelerate shard CPU processes over gloo, which it offers for accelerators only; settings to train so."""
    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    if kind == "fsdp2":
        os.environ.update(
            ACCELERATE_USE_FSDP="true",
            FSDP_VERSION="2",
            FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP",
            FSDP_RESHARD_AFTER_FORWARD="true",
            FSDP_CPU_RAM_EFFICIENT_LOADING="true",
            FSDP_STATE_DICT_TYPE="FULL_STATE_DICT",
        )
        return {}
    os.environ.update(ACCELERATE_USE_DEEPSPEED="true", DS_ACCELERATOR="cpu")
    zero = {
        "stage": int(kind.removeprefix("zero")),
        "stage3_param_persistence_threshold": 0,  # so that the smallest tensor is sharded, too
        "stage3_gather_16bit_weights_on_model_save": True,
    }
    automatic = (
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "train_batch_size",
        "gradient_clipping",
    )
    options = {"zero_optimization": zero, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    return {"use_cpu": False, "deepspeed": dict.fromkeys(automatic, "auto") | options}


def main(out: Path, kind: str, micro_batches: int, names: list[str]) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # every start of a run collects garbage, among all that was imported
    more = shard_on_cpu(kind) if kind in SHARDED else {}
    seen = {}
    for name in names:
        scenario = replace(SCENARIOS[name], settings=SCENARIOS[name].settings | more)
        try:
            seen[name] = run(out / name, scenario, micro_batches)
        except Exception as error:
            raise RuntimeError(f"scenario {name!r} on {kind}") from error
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(seen, out / "seen.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:])
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        os._exit(0)  # gloo's threads abort one interpreter's end in three, after everything is written
