"""`distillation.distillation_loss` of a verl run: verl's fields, and those of a method.

Named by `distillation.distillation_loss._target_=tropd.verl.config.TropdLossConfig`.
"""

from dataclasses import dataclass, field

import verl.trainer.distillation.losses as verl_losses
from verl.workers.config import DistillationLossConfig

from ..objective.methods import METHODS, Method
from .losses import register
from .methods import LOSS_SETTINGS, verl_method


@dataclass
class TropdLossConfig(DistillationLossConfig):
    """A method of tropd as verl's distillation loss.

    Attributes:
        loss_mode: name of the method (`tropd verl` lists them), or `package.module:NAME`.
        topk: tokens that the teacher sends at each position; at least the method's `fkl_top_k`.
        gate, outlier, outlier_tau, advantage_floor, advantage, advantage_alpha, advantage_scale, baseline, fkl_top_k,
            fkl_truncation, fkl_weight, teacher_entropy_tau, jsd_beta, ratio_clip: parts of the method, see `tropd
            methods NAME`; null keeps its own.
        endings: ids that end a response for either model, scored as one action; the first stands for all.
        gate_seed: of the draws of the `bernoulli` gate.

    Raises:
        ValueError: a method that verl cannot run, or a field that would change or break the loss.
    """

    loss_mode: str = "tropd"
    topk: int | None = 64
    loss_max_clamp: float | None = None
    log_prob_min_clamp: float | None = None
    use_policy_gradient: bool = False
    use_task_rewards: bool = False

    gate: str | None = None
    outlier: str | None = None
    outlier_tau: float | None = None
    advantage_floor: float | None = None
    advantage: str | None = None
    advantage_alpha: float | None = None
    advantage_scale: str | None = None
    baseline: str | None = None
    fkl_top_k: int | None = None
    fkl_truncation: str | None = None
    fkl_weight: float | None = None
    teacher_entropy_tau: float | None = None
    jsd_beta: float | None = None
    ratio_clip: float | None = None
    endings: list[int] = field(default_factory=list)
    gate_seed: int = 0

    def __post_init__(self) -> None:
        method = self.method
        if self.loss_mode not in verl_losses.DISTILLATION_LOSS_REGISTRY:  # one of your own, or one with other parts
            register(verl_losses, [self.loss_mode])
        super().__post_init__()
        self._check_fields(method)

    @property
    def method(self) -> Method:
        """The method, with its parts as they are set here."""
        if self.loss_mode not in METHODS and ":" not in self.loss_mode:
            raise ValueError(
                f"loss_mode is {self.loss_mode!r}, which is not a method of tropd. For verl's own losses leave "
                "_target_ as it is; `tropd verl` lists ours."
            )
        return verl_method(self.loss_mode, **{name: getattr(self, name) for name in LOSS_SETTINGS})

    def _check_fields(self, method: Method) -> None:
        if self.use_policy_gradient:
            raise ValueError(
                "use_policy_gradient is true, but the method has a policy gradient where it wants one, and verl would "
                "take the loss for a reward. Set it to false."
            )
        for name in ("loss_max_clamp", "log_prob_min_clamp"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is {getattr(self, name)}, which would change the method. Set it to null.")
        if self.topk is None or self.topk < max(method.fkl_top_k or 1, 1):
            raise ValueError(
                f"topk is {self.topk}, but method {self.loss_mode!r} reads the teacher's top-{method.fkl_top_k or 1}. "
                "Raise topk, or lower fkl_top_k."
            )
        endings = list(self.endings)
        if len(set(endings)) != len(endings) or any(not isinstance(one, int) or one < 0 for one in endings):
            raise ValueError(f"endings is {endings}; write different token ids, such as [151645,151643].")
