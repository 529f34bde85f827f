"""Build the parts that a run needs before its first step, each with its checks."""

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from timm.models import model_parameters
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import dispatch_clip_grad
from torch import nn
from torch.optim import Optimizer

from affnorm_zoo.config import OptimConfig, RuntimeConfig, TrainConfig
from affnorm_zoo.errors import UsageError
from affnorm_zoo.training.rates import divide_bias_rates

_WARMUP_LR = 1e-5  # where timm's warm-up starts
_MOST_RATES = 500  # learning rates of a schedule that are checked before a run
_SET_ELSEWHERE = {
    "sched": "optim.schedule", "num_epochs": "train.epochs", "min_lr": "optim.min_lr",
    "warmup_epochs": "optim.warmup_epochs", "step_on_epochs": "nothing, as every update has its own learning rate",
    "updates_per_epoch": "train.global_batch_size", "cooldown_epochs": "train.epochs",
}  # fmt: skip
_MOST_NOISE = 100  # noise_std over noise_pct; timm draws noise until it lies within noise_pct
_STEPS = {"step": "decay_epochs", "multistep": "decay_milestones"}  # when they are made
UNSUPPORTED_OPTIMIZERS = {"adahessian": "it needs a backward pass that keeps its own graph"}


def resolve_micro_batch(config: TrainConfig, num_processes: int, num_images: int) -> int:
    """The number of images that one process holds at once.

    Raises:
        UsageError: the global batch is not divisible into processes and micro-batches, or exceeds the training set.
    """
    size = config.global_batch_size
    if size > num_images:
        raise UsageError(f"train.global_batch_size={size} exceeds the {num_images} training images")
    if size % num_processes:
        raise UsageError(f"train.global_batch_size={size} must be a multiple of the {num_processes} processes")
    share = size // num_processes
    micro = config.micro_batch_size or share
    if share % micro:
        fits = [n for n in range(1, share + 1) if share % n == 0]
        raise UsageError(f"train.micro_batch_size={micro} must divide {share}, the share of a process: one of {fits}")
    return micro


def check_training_batch(name: str, model: nn.Module, input_size: tuple[int, ...], batch_size: int) -> None:
    """Run a copy of a model in training mode, on black images.

    Args:
        name: of the model, for the message.
        model: its state and the random numbers are left as they are.
        input_size: (C, H, W) of an image.
        batch_size: of the smallest batch of a run; two images stand for any more.

    Raises:
        UsageError: the model fails, as batch norm does for one image with a single pixel left.
    """
    device = next(model.parameters()).device
    images = torch.zeros(min(batch_size, 2), *input_size, device=device)
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            logits = copy.deepcopy(model).train()(images)
        if not torch.is_tensor(logits):
            raise TypeError(f"in training it returns a {type(logits).__name__}, not logits")
    except Exception as error:
        smallest = (
            ", the smallest that data.drop_last, train.global_batch_size and train.micro_batch_size leave to a process"
        )
        raise UsageError(
            f"{name} cannot be trained on a batch of {batch_size}{smallest * (batch_size == 1)}: "
            f"{' '.join(str(error).split()) or type(error).__name__}"
        ) from error


def build_optimizer(config: OptimConfig, model: nn.Module, global_batch_size: int) -> Optimizer:
    """Build timm's optimiser of that name; one-dimensional parameters have no weight decay.

    Raises:
        UsageError: timm does not know the name, the optimiser rejects an argument, or it is not supported.
    """
    if config.name in UNSUPPORTED_OPTIMIZERS:
        raise UsageError(f"optim.name={config.name} is not supported: {UNSUPPORTED_OPTIMIZERS[config.name]}")
    try:
        optimizer = create_optimizer_v2(
            model,
            opt=config.name,
            lr=config.learning_rate(global_batch_size),
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            layer_decay=config.layer_decay,
            **config.kwargs,
        )
        if config.kwargs:
            _try_step(config)
    except Exception as error:  # an optimiser may check its arguments only when it steps
        raise UsageError(f"optim.name={config.name} with optim.kwargs={config.kwargs}: {error}") from error
    if config.bias_over_kappa:
        divide_bias_rates(optimizer, model)
    return optimizer


def _try_step(config: OptimConfig) -> None:
    """Take one step with a small network."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 2))
    optimizer = create_optimizer_v2(model, opt=config.name, lr=1e-3, momentum=config.momentum, **config.kwargs)
    model(torch.ones(1, 1, 3, 3)).sum().backward()
    optimizer.step()


def build_schedule(config: OptimConfig, optimizer: Optimizer, epochs: int, updates_per_epoch: int) -> Scheduler:
    """Build timm's learning-rate schedule, as a function of the updates only.

    Raises:
        UsageError: timm does not know the schedule, rejects an argument or ignores it; or the schedule starts or ends
            above the optimiser's learning rate.
    """
    for key in sorted(_SET_ELSEWHERE.keys() & config.schedule_kwargs.keys()):
        raise UsageError(f"optim.schedule_kwargs.{key} is set by {_SET_ELSEWHERE[key]}")
    _check_noise(config.schedule_kwargs)
    highest = max(group["lr"] for group in optimizer.param_groups)
    arguments = {
        "sched": config.schedule,
        "num_epochs": epochs,
        "min_lr": config.min_lr,
        "warmup_epochs": config.warmup_epochs,
        "warmup_lr": _WARMUP_LR if highest > _WARMUP_LR else highest / 10,
        "warmup_prefix": False,
        "step_on_epochs": False,
        "updates_per_epoch": updates_per_epoch,
    }
    given = {**arguments, **config.schedule_kwargs}
    updates = epochs * updates_per_epoch
    try:
        schedule, _ = create_scheduler_v2(optimizer, **given)
        if schedule is None:
            raise UsageError(f"optim.schedule={config.schedule!r} is not one of timm's, such as cosine or constant")
        first, *_, last = _rates(schedule, optimizer, updates)
        _check_effects(config, given, arguments, updates)
    except UsageError:
        raise
    except Exception as error:  # timm does not check its arguments
        message = f"{type(error).__name__}: {error}"
        raise UsageError(f"optim.schedule={config.schedule} with {config.schedule_kwargs}: {message}") from error
    for end, rate in (("starts", first), ("ends", last)):
        if not 0 <= rate <= highest * (1 + 1e-9):
            raise UsageError(
                f"optim.schedule={config.schedule} {end} at a learning rate of {rate:.3g}, outside 0 to "
                f"{highest:.3g}: see optim.min_lr={config.min_lr} and optim.schedule_kwargs={config.schedule_kwargs}"
            )
    return schedule


def _rates(schedule: Scheduler, optimizer: Optimizer, updates: int) -> list[float]:
    """Learning rates from the first update to the last; raises if one is non-finite."""
    kept = [group["lr"] for group in optimizer.param_groups]
    rates = []
    for update in (*range(0, updates, max(updates // _MOST_RATES, 1)), updates - 1):
        schedule.step_update(update)
        rates.append(max(group["lr"] for group in optimizer.param_groups))
    for group, lr in zip(optimizer.param_groups, kept, strict=True):
        group["lr"] = lr
    if not all(map(math.isfinite, rates)):
        raise ValueError("it gives non-finite learning rates")
    return rates


def _check_noise(given: dict[str, Any]) -> None:
    """Raise UsageError for noise that timm would draw again and again, as it seldom or never lies within its limit."""
    limit, std = given.get("noise_pct", 0.67), given.get("noise_std", 1.0)
    numbers = isinstance(limit, int | float) and isinstance(std, int | float)
    if not numbers or not abs(std) <= _MOST_NOISE * limit:
        raise UsageError(
            f"optim.schedule_kwargs.noise_pct={limit} must be positive, and noise_std={std} at most {_MOST_NOISE} "
            "times that"
        )


def _check_effects(config: OptimConfig, given: dict[str, Any], usual: dict[str, Any], updates: int) -> None:
    """Raise UsageError for an argument that is not its default and changes no learning rate, or for no steps at all."""
    signature = inspect.signature(create_scheduler_v2).parameters
    defaults = {name: parameter.default for name, parameter in signature.items()} | usual | {"min_lr": 0.0}

    def rates(arguments: dict[str, Any]) -> list[float]:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        return _rates(create_scheduler_v2(optimizer, **arguments)[0], optimizer, updates)

    for key in ("min_lr", *config.schedule_kwargs):
        if given[key] != defaults[key] and rates(given) == rates(given | {key: defaults[key]}):
            name = "min_lr" if key == "min_lr" else f"schedule_kwargs.{key}"
            raise UsageError(
                f"optim.{name}={given[key]} changes nothing with optim.schedule={config.schedule}: unset it"
            )
    step = _STEPS.get(config.schedule, "")
    if step and rates(given) == rates(given | {"sched": "constant"}):
        raise UsageError(
            f"optim.schedule={config.schedule} makes no step within train.epochs={given['num_epochs']}: set "
            f"optim.schedule_kwargs.{step}"
        )


def build_loss(config: OptimConfig, mixes: bool, multilabel: bool = False) -> nn.Module:
    """The loss of logits (N, num_classes) and labels (N,), or (N, num_classes) if images are mixed or have several."""
    if multilabel or config.loss == "bce":
        return BinaryCrossEntropy(smoothing=0.0 if mixes else config.label_smoothing, smooth_dense=True)
    return SoftTargetCrossEntropy() if mixes else nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)


def build_clip(config: OptimConfig, model: nn.Module) -> Callable[[], None] | None:
    """Gradient clipping by value, or adaptive without the classifier; None for clipping by norm, which accelerate does.

    Adaptive clipping: Brock et al. 2021, https://arxiv.org/abs/2102.06171, eq. 3.
    """
    if config.clip_grad is None or config.clip_mode == "norm":
        return None
    parameters = list(model_parameters(model, exclude_head=config.clip_mode == "agc"))
    return lambda: dispatch_clip_grad(parameters, config.clip_grad, mode=config.clip_mode)


def prepare_model(config: RuntimeConfig, model: nn.Module) -> nn.Module:
    """Apply the config's memory layout, form of attention and compilation."""
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if not config.fused_attn:
        for module in model.modules():
            if hasattr(module, "fused_attn"):  # timm's flag, read at every forward
                module.fused_attn = False  # type: ignore[assignment]
    return torch.compile(model, mode=config.compile_mode) if config.compile else model  # type: ignore[return-value]


def synchronize_batch_norm(config: RuntimeConfig, model: nn.Module, device: torch.device, world_size: int) -> nn.Module:
    """Synchronise batch statistics over all processes if the config asks for it.

    Raises:
        UsageError: the device is a CPU; torch has no such layer there.
    """
    if not config.sync_bn or world_size == 1:
        return model
    if device.type == "cpu":
        raise UsageError("runtime.sync_bn needs GPUs: torch synchronises batch statistics only there")
    return convert_sync_batchnorm(model)
