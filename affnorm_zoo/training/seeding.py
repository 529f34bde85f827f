import random

import numpy as np
import torch


def seed_generators(device: torch.device, *key: int) -> None:
    """Seed the global generators of Python, NumPy, torch's CPU and ``device`` from integers, with accelerate's values.

    ``accelerate.utils.set_seed`` seeds every kind of device that torch knows. For each kind not in use torch formats a
    stack trace, which takes more than a millisecond per call.
    """
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])  # 32 bits: NumPy's generator takes no more
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
