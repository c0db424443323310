"""Next-token training of one small model on one core: seeded, saved every minute, resumed where it was.

Matrices of the layers are trained with Muon, which needs about half the steps of AdamW here; embeddings and norms with
AdamW.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from tools.proving_ground.batches import TYPICAL_LENGTH, Mixture, batch

SECONDS_BETWEEN_SAVES = 60.0

Accuracies = dict[str, float]

RESTING_SHARE = 0.3
"""Share of a domain that is good enough, relative to what it was."""


@dataclass(frozen=True)
class Plan:
    """How one model is trained.

    Attributes:
        name: of the model.
        mixture: what it learns from.
        steps: the length of the schedule.
        learning_rate: after the warm-up; a cosine takes it to 2% at the last step.
        enough: training ends at the first evaluation in which every domain of the mixture is at least as
            accurate, and a domain that is there before the others is hardly trained meanwhile, so that none runs
            ahead; `None` takes all steps.
    """

    name: str
    mixture: Mixture
    steps: int
    learning_rate: float
    enough: float | None = None
    batch_size: int = 16
    warmup_steps: int = 100
    steps_between_evaluations: int = 500


@dataclass
class Progress:
    """Where training stands; `history` holds (step, greedy validation accuracy of each domain)."""

    step: int = 0
    seconds: float = 0.0
    history: list[tuple[int, Accuracies]] = field(default_factory=list)


def train(
    plan: Plan,
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    evaluate: Callable[[Qwen3ForCausalLM], Accuracies],
) -> Progress:
    """Run a plan from its start or from its last save; the model ends in evaluation mode."""
    model.train()
    optimizers = make_optimizers(model)
    path = folder / f"{plan.name}.pt"
    progress = _load_progress(path, model, optimizers)
    clock, last_save = time.monotonic() - progress.seconds, time.monotonic()
    while progress.step < plan.steps and not _has_enough(plan, progress):
        data = batch(_mixture_now(plan, progress), tokenizer, plan.batch_size, progress.step)
        loss = update(model, optimizers, data, plan.learning_rate * _rate_share(plan, progress.step))
        progress.step += 1
        if progress.step % plan.steps_between_evaluations == 0 or progress.step == plan.steps:
            progress.history.append((progress.step, evaluate(model)))
            model.train()
        progress.seconds = time.monotonic() - clock
        if progress.step % 50 == 0:
            print(_status_line(plan, progress, loss), flush=True)
        if time.monotonic() - last_save > SECONDS_BETWEEN_SAVES:
            _save_progress(path, model, optimizers, progress)
            last_save = time.monotonic()
    _save_progress(path, model, optimizers, progress)
    model.eval()
    return progress


def make_optimizers(model: Qwen3ForCausalLM) -> list[torch.optim.Optimizer]:
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    others = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def update(
    model: Qwen3ForCausalLM, optimizers: list[torch.optim.Optimizer], data: tuple[Tensor, Tensor], learning_rate: float
) -> float:
    """One step; returns the mean loss of a response token."""
    ids, labels = data
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = learning_rate
        optimizer.zero_grad()
    logits = model(ids, use_cache=False).logits[:, :-1]
    total = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    (total / (len(ids) * TYPICAL_LENGTH)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return total.item() / int((labels[:, 1:] >= 0).sum())


def _rate_share(plan: Plan, step: int) -> float:
    """Linear warm-up, then a cosine to 2% of the learning rate at the last step."""
    if step < plan.warmup_steps:
        return (step + 1) / plan.warmup_steps
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / plan.steps))


def _has_enough(plan: Plan, progress: Progress) -> bool:
    if plan.enough is None or not progress.history:
        return False
    return min(progress.history[-1][1].values()) >= plan.enough


def _mixture_now(plan: Plan, progress: Progress) -> Mixture:
    """The plan's mixture, or one in which domains rest that the last evaluation found good enough."""
    if plan.enough is None or not progress.history:
        return plan.mixture
    reached, enough = progress.history[-1][1], plan.enough
    shares = [
        (name, share * (RESTING_SHARE if reached.get(name, 0.0) >= enough else 1.0))
        for name, share in plan.mixture.shares
    ]
    return replace(plan.mixture, shares=tuple(shares))


def _status_line(plan: Plan, progress: Progress, loss: float) -> str:
    reached = ", ".join(f"{name} {share:.2f}" for name, share in (progress.history or [(0, {})])[-1][1].items())
    return f"{plan.name}: step {progress.step} of {plan.steps}, loss {loss:.3f}, {progress.seconds:.0f} s; {reached}"


def _save_progress(
    path: Path, model: Qwen3ForCausalLM, optimizers: list[torch.optim.Optimizer], progress: Progress
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in optimizers]}
    torch.save(state | {"progress": asdict(progress)}, path.with_suffix(".partial"))
    os.replace(path.with_suffix(".partial"), path)


def _load_progress(path: Path, model: Qwen3ForCausalLM, optimizers: list[torch.optim.Optimizer]) -> Progress:
    if not path.is_file():
        return Progress()
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    progress = Progress(**state["progress"])
    print(f"{path.stem}: resumed at step {progress.step}", flush=True)
    return progress
