"""Output scale c and augmented coordinate κ: the two numbers that define a member of the family."""

import math
import re
from typing import NamedTuple

import torch
from torch import Tensor


class Scale(NamedTuple):
    """The pair (c, κ) of the affine-divergence family, in the units of the layer's input.

    ``c`` multiplies the output. ``kappa`` is the length of the constant coordinate appended to ``x``.
    """

    c: float
    kappa: float


SCALE_NAMES = "'unit', 'rms', 'rms4' or 'rms<r>' with any positive number r"
_ROOTED = re.compile(r"rms(\d+(?:\.\d+)?)?")


def is_scale_name(scale: object) -> bool:
    """Whether ``scale`` is the name of a scale: one of :data:`SCALE_NAMES`."""
    return isinstance(scale, str) and (scale == "unit" or _ratio(scale) > 0)


def _ratio(name: str) -> float:
    """κ/√n of ``"rms<r>"``: 1 for ``"rms"`` itself, 0 for another name."""
    match = _ROOTED.fullmatch(name)
    return float(match[1] or 1) if match else 0.0


def resolve_scale(scale: str | tuple[float, float], fan_in: int) -> Scale:
    """Resolve a scale's name to its numbers.

        "unit":    c = κ = 1                      the paper's form
        "rms":     c = κ = √fan_in                the same map in root-mean-square units
        "rms<r>":  c = √fan_in,  κ = r √fan_in    closer to the affine map the larger r; "rms4" is common

    For a map without κ every ``"rms<r>"`` is ``"rms"``.

    Args:
        scale: ``"unit"``, ``"rms"``, ``"rms4"``, ``"rms<r>"`` with another positive number such as ``"rms0.5"``, or
            the pair (c, κ) itself.
        fan_in: number of entries of one input vector or patch; at least 1.

    Raises:
        ValueError: the name is unknown, ``c`` is not positive, or ``kappa`` is negative.
    """
    if isinstance(scale, str) and is_scale_name(scale):
        root = math.sqrt(fan_in)
        return Scale(1.0, 1.0) if scale == "unit" else Scale(root, _ratio(scale) * root)
    if not isinstance(scale, tuple | list) or len(scale) != 2:
        raise ValueError(f"scale must be {SCALE_NAMES}, or a pair (c, κ), got {scale!r}")
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
