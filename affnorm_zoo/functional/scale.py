"""Output scale c and augmented coordinate κ: the two numbers that define a member of the family."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Scale(NamedTuple):
    """The pair (c, κ) of the affine-divergence family, in the units of the layer's input.

    ``c`` multiplies the output. ``kappa`` is the length of the constant coordinate appended to ``x``.
    """

    c: float
    kappa: float


# of the square root of the fan-in
NAMED_SCALES: dict[str, Callable[[float], Scale]] = {
    "unit": lambda _: Scale(1.0, 1.0),
    "rms": lambda root: Scale(root, root),
    "rms4": lambda root: Scale(root, 4 * root),
}


def resolve_scale(scale: str | tuple[float, float], fan_in: int) -> Scale:
    """Resolve a scale's name to its numbers.

        "unit":  c = κ = 1                      the paper's form
        "rms":   c = κ = √fan_in                the same map in root-mean-square units
        "rms4":  c = √fan_in,  κ = 4 √fan_in    closer to the affine map; equals "rms" for a map without κ

    Args:
        scale: ``"unit"``, ``"rms"``, ``"rms4"``, or the pair (c, κ) itself.
        fan_in: number of entries of one input vector or patch; at least 1.

    Raises:
        ValueError: the name is unknown, ``c`` is not positive, or ``kappa`` is negative.
    """
    if isinstance(scale, str) and scale in NAMED_SCALES:
        return NAMED_SCALES[scale](math.sqrt(fan_in))
    if isinstance(scale, str) or len(scale) != 2:
        raise ValueError(f"scale must be {', '.join(map(repr, NAMED_SCALES))} or a pair (c, κ), got {scale!r}")
    c, kappa = (float(value) for value in scale)
    if not (math.isfinite(c) and c > 0):
        raise ValueError(f"scale: c must be positive and finite, got {c}")
    if not (math.isfinite(kappa) and kappa >= 0):
        raise ValueError(f"scale: κ must be zero or positive and finite, got {kappa}")
    return Scale(c, kappa)


def widen(x: Tensor) -> Tensor:
    """Cast to the dtype in which squares are summed: float64 stays, every other dtype becomes float32.

    Half precision would overflow: 65504 is the square of 256, or a sum of 4,600 squares of 3.8.
    """
    return x if x.dtype == torch.float64 else x.float()


SHORTEST = 1e-12  # the smallest length that norm_like divides by


def inverse_norm(square_sum: Tensor, kappa: float) -> Tensor:
    """r = 1 / √(‖x‖² + κ²); for κ = 0, r = 1 / max(‖x‖, SHORTEST), and r = 0 where x is zero.

    With κ > 0 the map is smooth everywhere. With κ = 0 the direction of a zero vector is undefined; r = 0 there gives
    a zero output and a zero gradient. The floor is that of :func:`torch.nn.functional.normalize`. The derivative
    contains r³, which overflows float32 for lengths below 1e-13.
    """
    if kappa > 0:
        return torch.rsqrt(square_sum + kappa * kappa)
    # the floor also keeps the unused branch of a zero vector finite, so that its gradient is 0 and not NaN
    return square_sum.clamp_min(1e-24).rsqrt() * (square_sum > 0)  # SHORTEST²; TorchScript cannot read the global
