from dataclasses import dataclass, field
from typing import Any, Literal

from affnorm_zoo.config.require import require, require_use, require_values


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser, loss and schedule, by timm's names. One-dimensional parameters are exempt from weight decay."""

    name: str = "adamw"
    lr: float | None = None  # at the global batch size; None and no lr_base: 4e-3
    lr_base: float | None = None  # at lr_base_size images per update, scaled to the global batch size by lr_scale
    lr_base_size: int = 256
    lr_scale: Literal["linear", "sqrt"] = "linear"
    momentum: float = 0.9  # of sgd, ignored by optimisers without one
    weight_decay: float = 0.05
    layer_decay: float | None = None  # factor of the learning rate from one layer to the one before
    bias_over_kappa: bool = False  # divide the rate of an affine_like bias, and its part in clip_grad, by its κ
    kwargs: dict[str, Any] = field(default_factory=dict)  # further arguments of the optimiser, such as betas
    schedule: str = "cosine"  # timm's: cosine, tanh, poly, step, multistep, wsd, ...; or constant
    schedule_kwargs: dict[str, Any] = field(default_factory=dict)  # of timm.scheduler.create_scheduler_v2
    warmup_epochs: float = 1.0
    min_lr: float = 0.0
    clip_grad: float | None = None
    clip_mode: Literal["norm", "value", "agc"] = "norm"  # of clip_grad
    loss: Literal["ce", "bce"] | None = None  # None: ce, or bce for data.task=multilabel
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        require_values("optim", self)
        require(0 <= self.momentum < 1, f"optim.momentum must lie in [0, 1), got {self.momentum}")
        require(self.lr is None or self.lr_base is None, "set optim.lr or optim.lr_base, not both")
        require(self.lr is None or self.lr > 0, f"optim.lr must be positive, got {self.lr}")
        require(self.lr_base is None or self.lr_base > 0, f"optim.lr_base must be positive, got {self.lr_base}")
        require(self.lr_base_size > 0, f"optim.lr_base_size must be positive, got {self.lr_base_size}")
        require(self.weight_decay >= 0, f"optim.weight_decay must not be negative, got {self.weight_decay}")
        decay = self.layer_decay
        require(decay is None or 0 < decay <= 1, f"optim.layer_decay must lie in (0, 1], got {decay}")
        require(self.warmup_epochs >= 0, f"optim.warmup_epochs must not be negative, got {self.warmup_epochs}")
        lowest = self.lr or self.lr_base or DEFAULT_LR
        require(0 <= self.min_lr < lowest, f"optim.min_lr must lie in [0, optim.lr), got {self.min_lr}")
        require(self.clip_grad is None or self.clip_grad > 0, f"optim.clip_grad must be positive: {self.clip_grad}")
        require_use(self.clip_grad is not None, "optim", self, "clip_mode", "optim.clip_grad")
        require(0 <= self.label_smoothing < 1, f"optim.label_smoothing must lie in [0, 1): {self.label_smoothing}")
        require(
            self.schedule != "plateau",
            "optim.schedule=plateau keeps a state that cannot be resumed exactly: choose a schedule of the updates, "
            "such as cosine, step or constant",
        )

    def learning_rate(self, global_batch_size: int) -> float:
        """The rate at this many images per update."""
        if self.lr_base is None:
            return self.lr or DEFAULT_LR
        ratio = global_batch_size / self.lr_base_size
        return self.lr_base * (ratio if self.lr_scale == "linear" else ratio**0.5)


DEFAULT_LR = 4e-3
