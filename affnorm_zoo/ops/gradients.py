"""Shared parts of the ops' hand-derived gradients."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from affnorm_zoo.functional.scale import SHORTEST, inverse_norm


def output_factor(square_sum: Tensor, c: float, kappa: float) -> Tensor:
    """c r, with r as in :func:`affnorm_zoo.functional.scale.inverse_norm`."""
    if kappa > 0:
        # 1 / √((κ/c)² + ‖x‖²/c²) in two operations: rsub is the one whose number and coefficient cost none of their own
        return torch.rsub(square_sum, (kappa / c) ** 2, alpha=-1 / c**2).rsqrt_()
    return c * inverse_norm(square_sum, 0.0)


def factor_square(factor: Tensor, c: float, norm_like: bool) -> Tensor:
    """(c r)² from the forward's factor c r; 0 where norm_like's divisor is its floor and therefore a constant."""
    square = factor.square()
    return torch.where(square < 0.9999 * (c / SHORTEST) ** 2, square, 0.0) if norm_like else square


def differentiable_gradients(
    plain: Callable[..., Tensor], inputs: Sequence[Tensor | None], needed: Sequence[bool], dz: Tensor
) -> list[Tensor | None]:
    """The gradients of ``plain(*inputs)``, where wanted with a graph for a second derivative; None where not needed.

    Each is the partial derivative, also where one input was computed from another.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        own = [None if t is None else t.view_as(t) for t in inputs]
        z = plain(*own)
    wanted = [t for t, is_needed in zip(own, needed, strict=True) if is_needed and t is not None]
    gradients = iter(torch.autograd.grad(z, wanted, dz, create_graph=create_graph))
    return [next(gradients) if is_needed else None for is_needed in needed]
