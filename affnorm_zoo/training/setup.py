"""Everything a run needs before its first step, each part with the checks that belong to it."""

import os

import timm
import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from affnorm_zoo.config import ModelConfig, OptimConfig, RuntimeConfig, TrainConfig
from affnorm_zoo.data import Preprocessing
from affnorm_zoo.errors import UsageError
from affnorm_zoo.evaluation import check_model_name

_ACCELERATE_PRECISION = {"auto": None, "fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def build_accelerator(config: RuntimeConfig) -> Accelerator:
    """Connect the processes.

    Raises:
        UsageError: the launcher started more processes than have found each other, or sets gradient accumulation
            or a precision of its own beside the config's.
    """
    launched_precision = os.environ.get("ACCELERATE_MIXED_PRECISION")
    wanted_precision = _ACCELERATE_PRECISION[config.precision]
    if wanted_precision and launched_precision not in (None, "no", wanted_precision):
        raise UsageError(
            f"runtime.precision={config.precision}, but the launcher says {launched_precision}: set only one of them"
        )
    accelerator = Accelerator(cpu=config.device == "cpu", mixed_precision=wanted_precision)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise UsageError(
            f"the launcher started {launched} processes, but accelerate sees {accelerator.num_processes}: "
            "on CPUs use 'accelerate launch --multi_gpu --num_processes N' with runtime.device=cpu"
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise UsageError(
            "gradient accumulation is set by train.micro_batch_size: unset ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
        )
    return accelerator


def resolve_micro_batch(config: TrainConfig, num_processes: int, num_images: int) -> int:
    """Images that one process holds at once.

    Raises:
        UsageError: the global batch does not divide into processes and micro-batches, or exceeds the training set.
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


def build_model(config: ModelConfig, num_classes: int, in_chans: int) -> nn.Module:
    """Build the untrained model for the data.

    Raises:
        UsageError: timm does not know the name, or the model does not take an argument.
    """
    check_model_name(config.name)
    try:
        return timm.create_model(config.name, num_classes=num_classes, in_chans=in_chans, **config.kwargs)
    except (TypeError, ValueError) as error:
        raise UsageError(f"model {config.name} cannot be built with model.kwargs={config.kwargs}: {error}") from error


def describe_preprocessing(model: nn.Module, preprocessing: Preprocessing, class_names: tuple[str, ...]) -> None:
    """Write the data's side of the model into its pretrained_cfg, which travels with an export."""
    model.pretrained_cfg.update(
        input_size=preprocessing.input_size,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_pct=preprocessing.crop_pct,
        interpolation=preprocessing.interpolation,
        num_classes=len(class_names),
        tag=None,
    )
    for key in ("test_input_size", "test_crop_pct", "pool_size"):
        model.pretrained_cfg.pop(key, None)


def build_optimizer(config: OptimConfig, model: nn.Module) -> Optimizer:
    """Build timm's optimiser of that name; one-dimensional parameters are not decayed.

    Raises:
        UsageError: timm does not know the name or the optimiser refuses an argument.
    """
    try:
        return create_optimizer_v2(
            model, opt=config.name, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum
        )
    except (AssertionError, TypeError, ValueError) as error:
        raise UsageError(f"optim.name={config.name}: {error}") from error


def build_schedule(config: OptimConfig, optimizer: Optimizer, epochs: int, updates_per_epoch: int) -> Scheduler | None:
    """Build timm's schedule of the learning rate, counted in updates; None for a constant rate without warm-up."""
    if config.schedule == "constant" and not config.warmup_epochs:
        return None
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="cosine" if config.schedule == "cosine" else "step",
        num_epochs=epochs,
        decay_epochs=epochs + 1,  # "step" never steps: constant after the warm-up
        min_lr=config.min_lr,
        warmup_epochs=config.warmup_epochs,
        warmup_prefix=False,
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    return schedule


def prepare_model(config: RuntimeConfig, model: nn.Module) -> nn.Module:
    """Apply the memory layout and compilation that the config asks for."""
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return torch.compile(model) if config.compile else model  # type: ignore[return-value]
