"""affine_like and norm_like linear layers with a gradient derived by hand; see :mod:`affnorm_zoo.ops.patch_norm`.

    z = c r (Wx + κ b),  h = c r g:     dx = Wᵀh - x r² s,    s = ⟨x, Wᵀh⟩ + κ ⟨b, h⟩       (norm_like: ⟨x, Wᵀh⟩)

A GELU before the layer is part of the op: its output is computed again in the backward, so that of the widest tensor of
a transformer block one copy is saved and not two.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from affnorm_zoo.functional.activation import apply_input_activation
from affnorm_zoo.functional.affine_like import affine_like_map
from affnorm_zoo.functional.norm_like import norm_like_map
from affnorm_zoo.functional.scale import inverse_norm
from affnorm_zoo.ops import passes
from affnorm_zoo.ops.dispatch import autocast_inputs, use_plain_path
from affnorm_zoo.ops.recompute import gelu_again


def affine_like(
    x: Tensor, weight: Tensor, bias: Tensor | None, c: float, kappa: float, input_activation: str
) -> Tensor:
    """The lean form of :func:`affnorm_zoo.functional.affine_like.affine_like_map`, with the same values."""
    if torch.jit.is_scripting():
        return affine_like_map(apply_input_activation(x, input_activation), weight, bias, c, kappa)
    else:  # noqa: RET505 TorchScript skips only an else
        return _lean(x, weight, bias, c, kappa, False, input_activation)


def norm_like(x: Tensor, weight: Tensor, bias: Tensor | None, c: float, input_activation: str) -> Tensor:
    """The lean form of :func:`affnorm_zoo.functional.norm_like.norm_like_map`, with the same values."""
    if torch.jit.is_scripting():
        return norm_like_map(apply_input_activation(x, input_activation), weight, bias, c)
    else:  # noqa: RET505 TorchScript skips only an else
        return _lean(x, weight, bias, c, 0.0, True, input_activation)


def _lean(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    c: float,
    kappa: float,
    is_norm_like: bool,
    input_activation: str,
) -> Tensor:
    if use_plain_path():
        return _plain(x, weight, bias, c, kappa, is_norm_like, input_activation)
    x, weight, bias = autocast_inputs(x, weight, bias)
    # the op works on rows: the product of more axes may be a view, which an autograd function must not hand out
    rows = x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        z = NormalizedLinearFunction.apply(rows, weight, bias, c, kappa, is_norm_like, input_activation)
    else:
        z = _forward(apply_input_activation(rows, input_activation), weight, bias, c, kappa, is_norm_like)[0]
    return z.reshape(*x.shape[:-1], weight.shape[0])


def _plain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    c: float,
    kappa: float,
    is_norm_like: bool,
    input_activation: str,
) -> Tensor:
    x = apply_input_activation(x, input_activation)
    return norm_like_map(x, weight, bias, c) if is_norm_like else affine_like_map(x, weight, bias, c, kappa)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, c: float, kappa: float, is_norm_like: bool
) -> tuple[Tensor, Tensor]:
    """The output for rows x (M, in_features), and the factor c r of every row, (M, 1, 1, 1)."""
    factor = c * inverse_norm(passes.square_sum(_as_images(x), 1), kappa)
    inner_bias = None if is_norm_like or bias is None else kappa * bias
    z = F.linear(x, weight, inner_bias)
    passes.scale_output(_as_images(z), factor, bias if is_norm_like else None, "none")
    return z, factor


def _as_images(x: Tensor) -> Tensor:
    """(M, C) seen as images of one pixel, (M, C, 1, 1)."""
    return x[:, :, None, None]


class NormalizedLinearFunction(torch.autograd.Function):
    """Autograd of :func:`affine_like` and :func:`norm_like`; see the head of this file."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        c: float,
        kappa: float,
        is_norm_like: bool,
        input_activation: str,
    ) -> Tensor:
        z, factor = _forward(apply_input_activation(x, input_activation), weight, bias, c, kappa, is_norm_like)
        ctx.save_for_backward(x, weight, bias, factor)
        ctx.c, ctx.kappa, ctx.is_norm_like, ctx.input_activation = c, kappa, is_norm_like, input_activation
        return z

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple:
        x, weight, bias, factor = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return *_differentiable_backward(ctx, dz, x, weight, bias), *(None,) * 4
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dx = dweight = None

        a = _as_images(gelu_again(x) if ctx.input_activation == "gelu" else x)
        bias_inside, bias_outside = (None, bias) if ctx.is_norm_like else (bias, None)
        h, s, dbias = passes.scale_cotangent(
            _as_images(dz),
            factor,
            outer_bias=bias_outside,
            probe=None if bias_inside is None else ctx.kappa * bias_inside,
        )
        rows = h.flatten(1)
        if needs_weight:
            dweight = rows.t() @ a.flatten(1)
        if needs_bias and bias_inside is not None:
            dbias = ctx.kappa * rows.sum(0)
        if needs_x:
            dx = rows @ weight
            passes.correct_pointwise(_as_images(dx), a, (factor / ctx.c).square(), s)
            if ctx.input_activation == "gelu":
                dx = torch.ops.aten.gelu_backward(dx, x)
        return dx, dweight, dbias, *(None,) * 4


def _differentiable_backward(ctx: Any, dz: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> list:
    """The same gradients with a graph of their own, for a second derivative."""
    z = _plain(x, weight, bias, ctx.c, ctx.kappa, ctx.is_norm_like, ctx.input_activation)
    wanted = [t for t, needed in zip((x, weight, bias), ctx.needs_input_grad[:3], strict=True) if needed]
    gradients = iter(torch.autograd.grad(z, wanted, dz, create_graph=True))
    return [next(gradients) if needed else None for needed in ctx.needs_input_grad[:3]]
