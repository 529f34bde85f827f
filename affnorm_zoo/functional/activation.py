"""The activations that a normaliser can fuse: their output determines the sign of their input."""

from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS = ("none", "relu", "leaky_relu")
LEAKY_SLOPE = 0.01  # the default of torch.nn.functional.leaky_relu


def apply_activation(z: Tensor, activation: str) -> Tensor:
    """Apply ``"relu"`` or ``"leaky_relu"`` (slope 0.01) to any shape; ``"none"`` returns ``z``."""
    if activation == "relu":
        return F.relu(z)
    if activation == "leaky_relu":
        return F.leaky_relu(z)
    return z


def apply_input_activation(x: Tensor, activation: str) -> Tensor:
    """Apply ``"gelu"`` (the exact form) to any shape; ``"none"`` returns ``x``."""
    return F.gelu(x) if activation == "gelu" else x


def check_activation(activation: str) -> None:
    """Raise ValueError unless ``activation`` is known."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
