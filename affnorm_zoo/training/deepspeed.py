"""DeepSpeed support, experimental: ZeRO 1 and 2 train, average, evaluate and export, but neither save nor resume."""

import logging
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType

from affnorm_zoo.config import RunConfig
from affnorm_zoo.errors import UsageError

_logger = logging.getLogger(__name__)
_REMEDY = "or use FSDP 2, which shards the weights too: configs/accelerate/fsdp2.yaml"


def is_deepspeed(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed runs the optimiser steps."""
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def configure_deepspeed(accelerator: Accelerator, config: RunConfig, micro_batch_size: int, resume: str) -> None:
    """Pass the config's batch size and clipping to DeepSpeed, before it wraps the model.

    Raises:
        UsageError: the config or the launch config asks for something that is not supported under DeepSpeed.
    """
    plugin: Any = accelerator.state.deepspeed_plugin
    settings = plugin.deepspeed_config
    stage = settings.get("zero_optimization", {}).get("stage")
    clips = config.optim.clip_grad is not None
    refused = {
        f"zero_stage must be 1 or 2, got {stage}": stage not in (1, 2),
        "--resume: its state is not saved": resume != "none",
        "optim.clip_mode must be norm": clips and config.optim.clip_mode != "norm",
        "optim.clip_grad is not possible with optim.bias_over_kappa": clips and config.optim.bias_over_kappa,
        "train.non_finite=skip is not possible": config.train.non_finite == "skip",
        "runtime.divergence_updates is not possible": config.runtime.divergence_updates is not None,
    }
    for reason, applies in refused.items():
        if applies:
            raise UsageError(f"under DeepSpeed {reason}; change that, {_REMEDY}")
    _logger.warning("DeepSpeed is experimental: a run under it saves no checkpoints and cannot be resumed")
    settings.update(
        train_micro_batch_size_per_gpu=micro_batch_size,
        gradient_accumulation_steps=1,  # the loop marks the end of a window, and weights the losses itself
        gradient_clipping=config.optim.clip_grad or 0.0,
        zero_allow_untested_optimizer=True,  # DeepSpeed does not recognise timm's optimisers
        zero_force_ds_cpu_optimizer=False,
    )
