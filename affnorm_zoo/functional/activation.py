"""The activations that a normaliser can fuse, and the modules of torch and timm that stand for them."""

from timm.layers import activations, activations_me
from torch import Tensor, nn
from torch.nn import functional as F

LEAKY_SLOPE = 0.01  # the default of torch.nn.functional.leaky_relu

FROM_OUTPUT = ("relu", "relu6", "leaky_relu")  # the output determines the derivative
FROM_INPUT = ("silu", "hard_swish", "gelu")  # two inputs may have the same output, with different derivatives
ACTIVATIONS = ("none", *FROM_OUTPUT, *FROM_INPUT)

# exact types only: a subclass may compute something else
ACTIVATION_OF: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",  # with LEAKY_SLOPE
    nn.SiLU: "silu",
    activations.Swish: "silu",
    activations_me.SwishMe: "silu",
    nn.Hardswish: "hard_swish",
    activations.HardSwish: "hard_swish",
    activations_me.HardSwishMe: "hard_swish",
    nn.GELU: "gelu",  # without approximation
    activations.GELU: "gelu",
}


def activation_name(module: nn.Module) -> str:
    """The name in :data:`ACTIVATIONS` of what ``module`` computes, or ``"none"`` if it cannot be fused."""
    if isinstance(module, nn.LeakyReLU) and module.negative_slope != LEAKY_SLOPE:
        return "none"
    if isinstance(module, nn.GELU) and module.approximate != "none":
        return "none"
    return ACTIVATION_OF.get(type(module), "none")


def apply_activation(z: Tensor, activation: str) -> Tensor:
    """Apply an activation to any shape.

    Args:
        z: any floating dtype.
        activation: ``"relu"``, ``"relu6"``, ``"leaky_relu"`` (slope 0.01), ``"silu"``, ``"hard_swish"``, ``"gelu"``
            (the exact form), or ``"none"``, which returns ``z``.
    """
    if activation == "relu":
        return F.relu(z)
    if activation == "relu6":
        return F.relu6(z)
    if activation == "leaky_relu":
        return F.leaky_relu(z)
    if activation == "silu":
        return F.silu(z)
    if activation == "hard_swish":
        return F.hardswish(z)
    if activation == "gelu":
        return F.gelu(z)
    return z


def apply_input_activation(x: Tensor, activation: str) -> Tensor:
    """Apply ``"gelu"`` (the exact form) to any shape; ``"none"`` returns ``x``."""
    return F.gelu(x) if activation == "gelu" else x


def check_activation(activation: str) -> None:
    """Raise ValueError unless ``activation`` is known."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
