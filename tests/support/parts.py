"""A run's parts, assembled in this process without training."""

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from runs import tiny

from affnorm_zoo.config import load_config
from affnorm_zoo.training.assemble import assemble


def parts_of(*overrides):
    AcceleratorState._reset_state(reset_partial_state=True)
    return assemble(load_config(overrides=tiny(*overrides)), Accelerator(cpu=True))
