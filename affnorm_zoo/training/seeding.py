import random

import numpy as np
import torch


def seed_generators(device: torch.device, *key: int) -> None:
    """Seed the global generators of Python, NumPy, torch's CPU and ``device`` from integers, to accelerate's values.

    ``accelerate.utils.set_seed`` goes through every kind of device that torch knows, and torch formats a stack trace
    for each one that is not in use: more than a millisecond per call.
    """
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])  # 32 bits: NumPy's global generator takes no more
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
