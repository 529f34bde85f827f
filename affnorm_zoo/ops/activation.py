"""The activations behind a normaliser, in place, and their gradients, optionally into a given buffer."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from affnorm_zoo.functional.activation import LEAKY_SLOPE

aten = torch.ops.aten

# torch's rule, the name of the overload that writes into a buffer, and the constants behind (dz, known)
_BACKWARD: dict[str, tuple[Any, str, tuple]] = {
    "relu": (aten.threshold_backward, "grad_input", (0,)),
    "relu6": (aten.hardtanh_backward, "grad_input", (0.0, 6.0)),
    "leaky_relu": (aten.leaky_relu_backward, "grad_input", (LEAKY_SLOPE, True)),  # True: known is the output
    "silu": (aten.silu_backward, "grad_input", ()),
    "hard_swish": (aten.hardswish_backward, "out", ()),
    "gelu": (aten.gelu_backward, "grad_input", ()),
}


def activate_(z: Tensor, activation: str) -> None:
    """Apply an activation of :mod:`affnorm_zoo.functional.activation` in place."""
    if activation == "relu":
        z.relu_()
    elif activation == "relu6":
        F.hardtanh_(z, 0.0, 6.0)
    elif activation == "leaky_relu":
        F.leaky_relu_(z, LEAKY_SLOPE)
    elif activation == "silu":
        F.silu(z, inplace=True)
    elif activation == "hard_swish":
        F.hardswish(z, inplace=True)
    elif activation == "gelu":
        aten.gelu_(z)


def activation_backward(dz: Tensor, known: Tensor, activation: str, out: Tensor | None = None) -> Tensor:
    """The cotangent before an activation, from the cotangent after it; written into ``out`` if given.

    Args:
        dz: cotangent of the activation's output.
        known: the output for the activations of ``FROM_OUTPUT``, the input for those of ``FROM_INPUT``.
        activation: its name; not ``"none"``.
        out: of the shape and dtype of dz.
    """
    rule, into, constants = _BACKWARD[activation]
    if out is None:
        return rule(dz, known, *constants)
    return getattr(rule, into)(dz, known, *constants, **{into: out})
