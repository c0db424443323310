"""Peak memory of a step on one process, from a configuration alone, and whether it fits.

Optimiser state is made by the *first* update, when its activations are gone: the first step may fit and the second
not. Both are estimated.
"""

from dataclasses import dataclass

from .setup import Setup
from .stages import Stage, stage_peaks


@dataclass(frozen=True)
class Fit:
    """Whether a plan fits, and the sentence that says so."""

    fits: bool
    sentence: str


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process."""

    stages: tuple[Stage, ...]
    first_stages: tuple[Stage, ...]
    reserved_share: float
    advice: dict[str, str]

    @property
    def peak(self) -> Stage:
        """The largest stage of all but the first step."""
        return max(self.stages, key=lambda stage: stage.total)

    @property
    def first_peak(self) -> Stage:
        """The largest stage of the first step."""
        return max(self.first_stages, key=lambda stage: stage.total)

    @property
    def total(self) -> int:
        return self.peak.total

    def fits(self, available: int) -> Fit:
        """Compare with the bytes that a process may use, and say what to lower where it is too much."""
        usable = int(available * (1 - self.reserved_share))
        there = f"{human_bytes(usable)} are available"
        if self.reserved_share:
            there += f" beside vLLM (vllm_gpu_memory_utilization={self.reserved_share})"
        need = f"the largest stage ({self.peak.name}) needs about {human_bytes(self.total)} and {there}"
        if self.total <= usable:
            return Fit(True, f"It should fit: {need}.")
        second = (
            " The first step may fit and the second not: optimiser state is made by the first update."
            if self.first_peak.total <= usable
            else ""
        )
        return Fit(False, f"It will probably not fit: {need}.{second} {self._what_to_lower()}")

    def _what_to_lower(self) -> str:
        """The two largest parts of the peak that can be lowered, with what to type."""
        parts = sorted(self.peak.parts.items(), key=lambda item: -item[1])
        steps: dict[str, str] = {}
        for name, size in parts:
            if name in self.advice:
                steps.setdefault(self.advice[name], f"{name} ({human_bytes(size)}): {self.advice[name]}")
        if not steps:
            return "Use a larger device, or smaller models."
        return f"To lower it, {'; '.join(list(steps.values())[:2])}."


def estimate_memory(setup: Setup) -> MemoryEstimate:
    """Peak memory of each stage; `docs/planning.md` has the formulas."""
    return MemoryEstimate(
        stages=stage_peaks(setup, first_step=False),
        first_stages=stage_peaks(setup, first_step=True),
        reserved_share=setup.vllm_share,
        advice=_advice(setup),
    )


def _advice(setup: Setup) -> dict[str, str]:
    """What lowers each part under this setup; a part that is as low as it gets has no entry."""
    work = setup.work
    fewer_rows = f"use_vllm=True, or rollout_batch_size below {work.decoded_rows}"
    if setup.vllm is not None:  # what the teacher writes; rollout_batch_size is refused beside vLLM
        fewer_rows = "lower gradient_accumulation_steps, or more processes"
    elif setup.guided:
        fewer_rows += "; their teacher prefixes are read in one pass"
    advice = {"kept top-k": "lower gradient_accumulation_steps or fkl_top_k"}
    advice["kept hidden states"] = "lower gradient_accumulation_steps"
    if work.micro_rows > 1:
        advice["activations"] = f"per_device_train_batch_size below {work.micro_rows} (and more accumulation)"
    else:
        advice["activations"] = f"max_completion_length below {work.longest_response}"
    if not setup.checkpointing:
        advice["activations"] = "gradient_checkpointing=True"
    if work.decoded_rows > 1:
        advice |= dict.fromkeys(("KV cache", "sampler", "prompt activations"), fewer_rows)
    if not setup.lora:
        advice["optimiser state"] = "optim='adamw_bnb_8bit', an adapter (peft_config), or FSDP over more processes"
        advice["gradients"] = "an adapter (peft_config), or FSDP over more processes"
    if setup.weight_bytes > 2:
        lower = 'model_init_kwargs={"dtype": "bfloat16"}'
        advice["student weights"] = lower if setup.lora else "an adapter (peft_config), or FSDP over more processes"
    if setup.teacher_bytes > 2:
        advice["teacher weights"] = 'teacher_model_init_kwargs={"dtype": "bfloat16"}'
    elif not setup.sharded:
        advice["teacher weights"] = "FSDP over more processes divides them"
    return advice


def human_bytes(size: float) -> str:
    """Bytes in units of 1000.

    >>> [human_bytes(n) for n in (45_600_000_000, 2_340_000_000, 45_600_000, 1200, 7)]
    ['45.6 GB', '2.3 GB', '46 MB', '1 kB', '7 bytes']
    """
    for unit, name, digits in ((1e9, "GB", 1), (1e6, "MB", 0), (1e3, "kB", 0)):
        if size >= unit:
            return f"{size / unit:.{digits}f} {name}"
    return f"{size:.0f} bytes"
