"""The processes of a run: how they connect, and how they fail together."""

import os
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list

from affnorm_zoo.config import RuntimeConfig
from affnorm_zoo.errors import UsageError
from affnorm_zoo.training.deepspeed import is_deepspeed

T = TypeVar("T")
_ACCELERATE_PRECISION = {"auto": None, "fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def build_accelerator(config: RuntimeConfig, **kwargs) -> Accelerator:
    """Connect the processes; ``kwargs`` are further arguments of :class:`accelerate.Accelerator`.

    Raises:
        UsageError: fewer processes connected than the launcher was asked for; or the launcher asks for sharding that
            does not run on CPUs; or it sets gradient accumulation, or a precision that conflicts with the config's.
    """
    launched_precision = os.environ.get("ACCELERATE_MIXED_PRECISION")
    wanted_precision = _ACCELERATE_PRECISION[config.precision]
    if wanted_precision and launched_precision not in (None, "no", wanted_precision):
        raise UsageError(
            f"runtime.precision={config.precision}, but the launcher says {launched_precision}: set only one of them"
        )
    if os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") != "1":
        raise UsageError(
            "gradient accumulation is set by train.micro_batch_size: unset ACCELERATE_GRADIENT_ACCUMULATION_STEPS, "
            "and gradient_accumulation_steps in the launch config"
        )
    try:
        accelerator = Accelerator(cpu=config.device == "cpu", mixed_precision=wanted_precision, **kwargs)
    except (ValueError, ImportError) as error:
        raise UsageError(f"accelerate cannot start: {' '.join(str(error).split())}") from error
    _check_processes(accelerator)
    if config.deterministic:
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not config.deterministic  # choose the fastest algorithms by timing, as timm does
    return accelerator


def on_main(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """Run ``action`` on the main process and return its result on every process. If it fails, all processes fail."""
    outcome: list = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = action()
        except UsageError as error:
            outcome[1] = error
        except Exception as error:
            if accelerator.num_processes == 1:
                raise
            outcome[1] = RuntimeError(f"the main process failed: {type(error).__name__}: {error}")
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def shards_weights(accelerator: Accelerator) -> bool:
    """Whether the launch config shards the weights over the processes."""
    return accelerator.distributed_type == DistributedType.FSDP


def _check_processes(accelerator: Accelerator) -> None:
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise UsageError(
            f"the launcher started {launched} processes, but accelerate sees {accelerator.num_processes}: "
            "on CPUs use 'accelerate launch --multi_gpu --num_processes N' with runtime.device=cpu"
        )
    wanted = requested_processes(parent_command())
    if wanted and wanted > 1 and launched == 1:
        raise UsageError(
            f"accelerate launch was asked for {wanted} processes and started one, as it does with --cpu: "
            "use 'accelerate launch --multi_gpu --num_processes N' with runtime.device=cpu"
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UsageError("precision fp16 needs a GPU; a CPU would silently use float32: use bf16 or fp32")
    if _is_on("ACCELERATE_USE_FSDP") and not shards_weights(accelerator):
        raise UsageError(
            f"the launch config asks for FSDP, but accelerate has started {accelerator.distributed_type.value}: FSDP "
            "needs GPUs, and runtime.device=auto"
        )
    if _is_on("ACCELERATE_USE_DEEPSPEED") and not is_deepspeed(accelerator):
        raise UsageError(
            f"the launch config asks for DeepSpeed, but accelerate has started {accelerator.distributed_type.value}: "
            "DeepSpeed needs GPUs, and runtime.device=auto"
        )
    if shards_weights(accelerator) and not accelerator.is_fsdp2:
        raise UsageError("only FSDP 2 is supported: set fsdp_version: 2 in the launch config")


def requested_processes(command: list[str]) -> int | None:
    """The number of processes that a command line of ``accelerate launch`` asks for, or None."""
    if not any("accelerate" in part for part in command[:3]):
        return None
    options = dict(pairwise(command))
    for part in command:
        name, equals, value = part.partition("=")
        if equals:
            options.setdefault(name, value)
    for name in ("--num_processes", "--num-processes"):
        if options.get(name, "").isdigit():
            return int(options[name])
    config = options.get("--config_file") or options.get("--config-file")
    if config and Path(config).is_file():
        return yaml.safe_load(Path(config).read_text(encoding="utf-8")).get("num_processes")
    return None


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


def parent_command() -> list[str]:
    """The command line of the parent process, if the system provides it."""
    if sys.platform != "linux":
        return []
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return []
