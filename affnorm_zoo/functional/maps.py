"""Normalisers as a map φ without parameters, times a scale.

Every normaliser of a single vector is x ↦ φ(x) · s. φ is bounded, or keeps a length. s has the parameters.
"""

import torch
from torch import Tensor

from affnorm_zoo.functional.scale import inverse_norm, widen


def vector_softsign(x: Tensor, *, kappa: float, dim: int = -1) -> Tensor:
    """The softsign of a vector: it keeps the direction and bounds the length by 1.

        φ(x) = x / √(‖x‖² + κ²) = v / √(1 + ‖v‖²)  with v = x / κ

    Args:
        x: any shape, any floating dtype; ‖x‖² is summed over ``dim`` in float32 or wider.
        kappa: the length at which the output reaches 1/√2; positive.
        dim: the axis of the channels.

    Returns:
        The shape and dtype of ``x``.

    Raises:
        ValueError: ``kappa`` is not positive.

    Note:
        affine_like is a plain linear layer on the softsign of the augmented vector: with x̃ = [x; κ] / √(‖x‖² + κ²),
        the output is c [W, b] x̃.
    """
    if not kappa > 0:
        raise ValueError(f"kappa must be positive, got {kappa}: use l2_norm for a map of constant length")
    return vector_softsign_map(x, kappa, dim)


def vector_softsign_map(x: Tensor, kappa: float, dim: int) -> Tensor:
    """The formula of :func:`vector_softsign`; TorchScript compiles this function."""
    x_wide = widen(x)
    square_sum = x_wide.square().sum(dim=dim, keepdim=True)
    return (x_wide * inverse_norm(square_sum, kappa)).to(x.dtype)


def scale_map(y: Tensor, weight: Tensor | None, bias: Tensor | None = None, dim: int = -1) -> Tensor:
    """Scale the output of a map φ, and shift it.

        z = weight · y + bias

    Args:
        y: the map's output, with the channels on axis ``dim``.
        weight: None, a scalar tensor, or one entry per channel, (C,).
        bias: None, a scalar tensor, or one entry per channel, (C,).
        dim: the axis of the channels.

    Returns:
        The shape and dtype of ``y``.
    """
    axes_behind = -1 - dim if dim < 0 else y.dim() - 1 - dim
    if weight is not None:
        y = y * _along(weight, axes_behind).to(y.dtype)
    if bias is not None:
        y = y + _along(bias, axes_behind).to(y.dtype)
    return y


def _along(parameter: Tensor, axes_behind: int) -> Tensor:
    return parameter if parameter.dim() == 0 else parameter.reshape([-1] + [1] * axes_behind)


def tanh_map(x: Tensor, alpha: Tensor) -> Tensor:
    """φ(x) = tanh(α x), entry by entry; α is a scalar. Zhu et al. 2025, https://arxiv.org/abs/2503.10622, eq. 1."""
    return torch.tanh(alpha.to(x.dtype) * x)


def erf_map(x: Tensor, alpha: Tensor, shift: Tensor) -> Tensor:
    """φ(x) = erf(α x + s), entry by entry; α and s are scalars. Chen et al. 2025, https://arxiv.org/abs/2512.10938."""
    return torch.erf(alpha.to(x.dtype) * x + shift.to(x.dtype))
