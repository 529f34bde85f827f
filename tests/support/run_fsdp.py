"""A whole run under FSDP 2 on CPUs, in several processes: run_fsdp.py FOLDER [key=value ...], resumed if it can be.

Accelerate starts FSDP on GPUs only; its state is told here that it has.
"""

import os
import sys
from pathlib import Path

from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType

from affnorm_zoo.config import load_config
from affnorm_zoo.evaluation import is_sharded
from affnorm_zoo.training import engine


def build_sharding_accelerator(config, **kwargs):
    accelerator = Accelerator(cpu=True, **kwargs)
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="size_based_wrap", min_num_params=2000, reshard_after_forward=True
    )
    assert accelerator.is_fsdp2
    return accelerator


def assemble_shards(*arguments):
    parts = assemble(*arguments)
    assert is_sharded(parts.trainer.state.model)
    return parts


assemble, engine.assemble = engine.assemble, assemble_shards
engine.build_accelerator = build_sharding_accelerator
engine.train(load_config(overrides=sys.argv[2:]), Path(sys.argv[1]), resume="auto")
# the groups that shards hold on to can abort an interpreter that is shutting down
os._exit(0)
