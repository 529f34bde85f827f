"""The hardware and versions of a measurement or a run."""

import os
import platform
from importlib.metadata import version
from typing import Any

import torch

from affnorm_zoo._version import __version__

PACKAGES = ("torch", "timm", "accelerate", "huggingface-hub", "safetensors", "affnorm-zoo")


def describe_environment(device: torch.device | None = None) -> dict[str, Any]:
    """Hardware and versions. The hardware is the GPU if ``device`` is one, or if none is given and a GPU exists."""
    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else _cpu_name(),
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
        **{name: package_version(name) for name in PACKAGES},
    }


def package_version(name: str) -> str:
    """The version of an installed package; for this package that of the code, which may run from a checkout."""
    return __version__ if name == "affnorm-zoo" else version(name)


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 a system file
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
