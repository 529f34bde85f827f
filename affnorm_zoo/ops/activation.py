"""The activations behind a normaliser, in place, and their gradients, optionally into a given buffer."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from affnorm_zoo.functional.activation import LEAKY_SLOPE

aten = torch.ops.aten

# torch's rule, its overload that writes into a buffer, that buffer's name, and the constants behind (dz, known).
# Overloads by name spare the host a search.
_BACKWARD: dict[str, tuple[Any, Any, str, tuple]] = {
    "relu": (aten.threshold_backward.default, aten.threshold_backward.grad_input, "grad_input", (0,)),
    "relu6": (aten.hardtanh_backward.default, aten.hardtanh_backward.grad_input, "grad_input", (0.0, 6.0)),
    "leaky_relu": (  # True: known is the output
        aten.leaky_relu_backward.default, aten.leaky_relu_backward.grad_input, "grad_input", (LEAKY_SLOPE, True)
    ),
    "silu": (aten.silu_backward.default, aten.silu_backward.grad_input, "grad_input", ()),
    "hard_swish": (aten.hardswish_backward.default, aten.hardswish_backward.out, "out", ()),
    "gelu": (aten.gelu_backward.default, aten.gelu_backward.grad_input, "grad_input", ()),
}  # fmt: skip


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
    rule, rule_into, name, constants = _BACKWARD[activation]
    return rule(dz, known, *constants) if out is None else rule_into(dz, known, *constants, **{name: out})
