"""What a run is made of. The defaults train a small PatchNorm network on the embedded digits."""

from dataclasses import dataclass, field
from typing import Any, Literal

from affnorm_zoo.errors import UsageError


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Any timm model, ours or not. The data sets ``num_classes`` and, for the embedded digits, ``in_chans``."""

    name: str = "resnet20_cifar_patchnorm"
    kwargs: dict[str, Any] = field(default_factory=dict)  # further arguments of timm.create_model


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images and their augmentation. Without a path: scikit-learn's handwritten digits, 8 px, grey."""

    path: str | None = None  # a folder with one subfolder a split, and in each one subfolder a class
    train_split: str = "train"
    val_split: str = "val"
    image_size: int | None = None  # in pixels; None: the model's
    mean: tuple[float, ...] | None = None  # of the pixels in [0, 1]; None: the model's
    std: tuple[float, ...] | None = None
    crop: Literal["resized", "padded", "none"] = "padded"  # padded: shift by up to an eighth of the image
    hflip: float = 0.0  # probability
    auto_augment: str | None = None  # timm's notation, such as rand-m9-mstd0.5-inc1
    workers: int = 0  # processes that decode images, a rank

    def __post_init__(self) -> None:
        _require(self.image_size is None or self.image_size > 0, f"data.image_size must be positive: {self.image_size}")
        _require(0 <= self.hflip <= 1, f"data.hflip must lie in [0, 1], got {self.hflip}")
        _require(
            self.auto_augment is None or self.crop == "resized",
            f"data.auto_augment needs data.crop=resized, got data.crop={self.crop}",
        )
        _require(self.workers >= 0, f"data.workers must not be negative, got {self.workers}")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser and schedule, by timm's names. One-dimensional parameters are exempt from weight decay."""

    name: str = "adamw"
    lr: float = 4e-3  # at the global batch size
    momentum: float = 0.9  # of sgd, ignored by optimisers without one
    weight_decay: float = 0.05
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: float = 1.0
    min_lr: float = 0.0
    clip_grad: float | None = None  # largest gradient norm
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _require(self.lr > 0, f"optim.lr must be positive, got {self.lr}")
        _require(self.weight_decay >= 0, f"optim.weight_decay must not be negative, got {self.weight_decay}")
        _require(self.warmup_epochs >= 0, f"optim.warmup_epochs must not be negative, got {self.warmup_epochs}")
        _require(0 <= self.min_lr < self.lr, f"optim.min_lr must lie in [0, optim.lr), got {self.min_lr}")
        _require(self.clip_grad is None or self.clip_grad > 0, f"optim.clip_grad must be positive: {self.clip_grad}")
        _require(0 <= self.label_smoothing < 1, f"optim.label_smoothing must lie in [0, 1): {self.label_smoothing}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length and batches. Gradients accumulate where the global batch exceeds what the processes hold at once."""

    epochs: int = 20
    global_batch_size: int = 64  # images an update, over all processes
    micro_batch_size: int | None = None  # images a forward pass on one process; None: no accumulation
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.epochs > 0, f"train.epochs must be positive, got {self.epochs}")
        _require(self.global_batch_size > 0, f"train.global_batch_size must be positive, got {self.global_batch_size}")
        micro = self.micro_batch_size
        _require(micro is None or micro > 0, f"train.micro_batch_size must be positive, got {micro}")


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Where and in which precision; numbers that decide the result stand elsewhere."""

    device: Literal["auto", "cpu"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: what the launcher says
    channels_last: bool = False
    compile: bool = False


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        _require(
            self.optim.warmup_epochs < self.train.epochs,
            f"optim.warmup_epochs ({self.optim.warmup_epochs}) must be below train.epochs ({self.train.epochs})",
        )
