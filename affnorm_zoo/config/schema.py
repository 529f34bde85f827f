"""What a run is made of. The defaults train a small PatchNorm network on scikit-learn's digits."""

from dataclasses import dataclass, field
from typing import Any, Literal

from affnorm_zoo.config.data import DataConfig
from affnorm_zoo.config.optim import OptimConfig
from affnorm_zoo.config.require import require, require_use, require_values

METRICS = {  # that rank checkpoints, by data.task; the first is the default
    "classification": ("top1", "top5", "loss", "ece"),
    "multilabel": ("map", "micro_f1", "macro_f1", "loss"),
}
CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Any timm model, ours or not. The data sets ``num_classes`` and, for grey images, ``in_chans``."""

    name: str = "resnet20_cifar_patchnorm"
    pretrained: bool = False  # start from the name's published weights
    weights: str | None = None  # start from those of an export folder, such as affnorm-zoo convert writes
    kwargs: dict[str, Any] = field(default_factory=dict)  # further arguments of timm.create_model
    grad_checkpointing: bool = False  # less memory for about a third more time
    ema_decay: float | None = None  # decay per update of the weights' moving average; None: no average
    ema_warmup: bool = True  # a shorter average at first

    def __post_init__(self) -> None:
        require_values("model", self)
        require(self.weights is None or not self.pretrained, "set model.weights or model.pretrained, not both")
        decay = self.ema_decay
        require(decay is None or 0 < decay < 1, f"model.ema_decay must lie in (0, 1), got {decay}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length and batches. Gradients accumulate where the global batch exceeds what the processes hold at once."""

    epochs: int = 20
    global_batch_size: int = 64  # images per update, over all processes
    micro_batch_size: int | None = None  # images per forward pass on one process; None: no accumulation
    seed: int = 0
    eval_epochs: int = 1  # epochs between evaluations; the last epoch is always evaluated
    max_updates: int | None = None  # stop there, skipped updates counted; the schedule stays that of all epochs
    non_finite: Literal["stop", "skip"] = "stop"  # on a non-finite gradient; skip checks every update
    max_skips: int = 10  # in a row, with non_finite=skip
    # train towards the outputs of this network, without labels: an export folder, or a timm name with weights
    distill_from: str | None = None
    distill_temperature: float = 1.0  # divides both networks' logits

    def __post_init__(self) -> None:
        require_values("train", self)
        require(0 <= self.seed < 2**32, f"train.seed must lie in [0, 2³²), got {self.seed}")
        require(self.epochs > 0, f"train.epochs must be positive, got {self.epochs}")
        require(self.global_batch_size > 0, f"train.global_batch_size must be positive, got {self.global_batch_size}")
        micro = self.micro_batch_size
        require(micro is None or micro > 0, f"train.micro_batch_size must be positive, got {micro}")
        require(self.eval_epochs > 0, f"train.eval_epochs must be positive, got {self.eval_epochs}")
        most = self.max_updates
        require(most is None or most > 0, f"train.max_updates must be positive, got {most}")
        require(self.max_skips > 0, f"train.max_skips must be positive, got {self.max_skips}")
        require_use(self.non_finite == "skip", "train", self, "max_skips", "train.non_finite=skip")
        temperature = self.distill_temperature
        in_range = 0.01 <= temperature <= 1000  # beyond it float32 overflows
        require(in_range, f"train.distill_temperature must lie in [0.01, 1000], got {temperature}")
        require_use(self.distill_from is not None, "train", self, "distill_temperature", "train.distill_from")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state is saved, and what is kept of it. A stop by a signal always saves."""

    every_epochs: int = 1
    every_minutes: float | None = 15.0  # within an epoch; None: at its end only
    every_updates: int | None = None  # skipped updates counted
    keep_last: int = 2
    milestones: tuple[int, ...] = ()  # epochs whose end is kept for good
    # val.top1, .top5, .loss or .ece; of data.task=multilabel val.map, .micro_f1, .macro_f1 or .loss; or one of ema
    best_metric: str | None = None  # None: the first of these

    def __post_init__(self) -> None:
        require_values("checkpoint", self)
        require(self.every_epochs > 0, f"checkpoint.every_epochs must be positive, got {self.every_epochs}")
        minutes, updates = self.every_minutes, self.every_updates
        require(minutes is None or minutes > 0, f"checkpoint.every_minutes must be positive, got {minutes}")
        require(updates is None or updates > 0, f"checkpoint.every_updates must be positive, got {updates}")
        require(self.keep_last > 0, f"checkpoint.keep_last must be positive, got {self.keep_last}")


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Where, how fast and how visibly; numbers that decide the result stand elsewhere."""

    device: Literal["auto", "cpu"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: what the launcher says
    channels_last: bool = False
    compile: bool = False
    compile_mode: CompileMode | None = None  # of torch.compile; reduce-overhead and max-autotune replay CUDA graphs
    fused_attn: bool = True  # torch's fused attention where timm uses it; a CPU may be faster without
    sync_bn: bool = False  # batch statistics over all processes, for the batch-norm baselines
    deterministic: bool = False  # torch's deterministic algorithms, at the cost of speed, and none chosen by timing
    log_updates: int = 50  # updates between writes to metrics.jsonl, which has one line per update
    divergence_updates: int | None = None  # updates between measurements of the divergence; None: none
    divergence_images: int = 16  # of the validation set, to measure it on
    trackers: tuple[str, ...] = ()  # tensorboard, wandb, trackio and whatever else accelerate knows

    @property
    def replays_graphs(self) -> bool:
        """Whether the compiled model replays CUDA graphs, whose outputs the next step overwrites."""
        return self.compile_mode in ("reduce-overhead", "max-autotune")

    def __post_init__(self) -> None:
        require_values("runtime", self)
        require(self.log_updates > 0, f"runtime.log_updates must be positive, got {self.log_updates}")
        require(
            self.compile or self.compile_mode is None,
            f"runtime.compile_mode={self.compile_mode} needs runtime.compile=true",
        )
        require(len({*self.trackers}) == len(self.trackers), f"runtime.trackers must be different: {self.trackers}")
        every, images = self.divergence_updates, self.divergence_images
        require(every is None or every > 0, f"runtime.divergence_updates must be positive, got {every}")
        require(images > 1, f"runtime.divergence_images must be at least 2, got {images}")
        require_use(every is not None, "runtime", self, "divergence_images", "runtime.divergence_updates")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        warmup, epochs, off = self.optim.warmup_epochs, self.train.epochs, self.data.mixup_off_epoch
        require(warmup < epochs, f"optim.warmup_epochs ({warmup}) must be below train.epochs ({epochs})")
        repeats, size = self.data.repeats, self.train.global_batch_size
        require(repeats <= size, f"data.repeats ({repeats}) must not exceed train.global_batch_size ({size})")
        require(off is None or off < epochs, f"data.mixup_off_epoch ({off}) must be below train.epochs ({epochs})")
        self._check_metric()
        several = self.data.task == "multilabel"
        require(not several or self.optim.loss != "ce", "optim.loss=ce is for one class per image: leave it out")
        require(
            not several or self.train.distill_from is None,
            "train.distill_from needs data.task=classification: its probabilities sum to 1 over the classes",
        )
        uses_labels = self.optim.loss == "bce" or self.optim.label_smoothing > 0
        require(
            self.train.distill_from is None or not uses_labels,
            "train.distill_from takes no labels: leave optim.loss and optim.label_smoothing as they are",
        )
        late = [epoch for epoch in self.checkpoint.milestones if not 0 < epoch <= epochs]
        require(not late, f"checkpoint.milestones must lie in 1 to train.epochs ({epochs}), got {late}")

    @property
    def best_metric(self) -> str:
        """The metric that ranks checkpoints, such as ``val.top1``."""
        return self.checkpoint.best_metric or f"val.{METRICS[self.data.task][0]}"

    def _check_metric(self) -> None:
        """Raise UsageError unless the run measures the metric that ranks its checkpoints."""
        known = [f"{weights}.{metric}" for weights in ("val", "ema") for metric in METRICS[self.data.task]]
        metric = self.best_metric
        require(metric in known, f"checkpoint.best_metric must be one of {', '.join(known)}, got {metric!r}")
        require(
            not metric.startswith("ema") or self.model.ema_decay is not None,
            f"checkpoint.best_metric={metric} needs an average: set model.ema_decay",
        )
