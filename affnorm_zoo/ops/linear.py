"""affine_like and norm_like linear layers with a gradient derived by hand; see :mod:`affnorm_zoo.ops.patch_norm`.

    z = c r (Wx + κ b),  h = c r g:     dx = Wᵀh - x r² s,    s = ⟨x, Wᵀh⟩ + κ ⟨b, h⟩       (norm_like: ⟨x, Wᵀh⟩)

A GELU before the layer is part of the op. The backward recomputes its output, so only one copy of a transformer block's
widest tensor is saved, not two.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from affnorm_zoo.functional.activation import apply_input_activation
from affnorm_zoo.functional.affine_like import affine_like_map
from affnorm_zoo.functional.norm_like import norm_like_map
from affnorm_zoo.ops import passes
from affnorm_zoo.ops.dispatch import as_output, autocast_inputs, overwritable, use_plain_gradient, use_plain_path
from affnorm_zoo.ops.gradients import differentiable_gradients, factor_square, output_factor
from affnorm_zoo.ops.recompute import gelu_again


class LinearMap(NamedTuple):
    """Which map the op computes. Without properties, as :class:`affnorm_zoo.ops.patch_map.PatchMap`."""

    c: float
    kappa: float
    norm_like: bool
    input_activation: str

    def inner_kappa(self) -> float | None:
        """The factor of a bias inside the quotient, or None if the bias is added after the division."""
        return None if self.norm_like else self.kappa


def affine_like(
    x: Tensor, weight: Tensor, bias: Tensor | None, c: float, kappa: float, input_activation: str
) -> Tensor:
    """The lean form of :func:`affnorm_zoo.functional.affine_like.affine_like_map`, with the same values."""
    if torch.jit.is_scripting():
        return affine_like_map(apply_input_activation(x, input_activation), weight, bias, c, kappa)
    else:  # noqa: RET505 TorchScript skips code only in an else branch
        return _lean(x, weight, bias, LinearMap(c, kappa, False, input_activation))


def norm_like(x: Tensor, weight: Tensor, bias: Tensor | None, c: float, input_activation: str) -> Tensor:
    """The lean form of :func:`affnorm_zoo.functional.norm_like.norm_like_map`, with the same values."""
    if torch.jit.is_scripting():
        return norm_like_map(apply_input_activation(x, input_activation), weight, bias, c)
    else:  # noqa: RET505 TorchScript skips code only in an else branch
        return _lean(x, weight, bias, LinearMap(c, 0.0, True, input_activation))


def _lean(x: Tensor, weight: Tensor, bias: Tensor | None, what: LinearMap) -> Tensor:
    if use_plain_path():
        return _plain(x, weight, bias, what)
    x, weight, bias = autocast_inputs(x, weight, bias)
    # the op works on rows: the product of more axes may be a view, which an autograd function must not return
    rows = x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        z = NormalizedLinearFunction.apply(rows, weight, bias, what)
    else:
        z = _forward(rows, weight, bias, what)[0]
    return z.reshape(*x.shape[:-1], weight.shape[0])


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, what: LinearMap) -> Tensor:
    x = apply_input_activation(x, what.input_activation)
    if what.norm_like:
        return norm_like_map(x, weight, bias, what.c)
    return affine_like_map(x, weight, bias, what.c, what.kappa)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, what: LinearMap) -> tuple[Tensor, Tensor]:
    """The output for rows x (M, in_features), and the factor c r per row, (M, 1, 1, 1).

    Passes around the library's matrix product.
    """
    a = apply_input_activation(x, what.input_activation)
    factor = output_factor(passes.square_sum(_as_images(a), 1), what.c, what.kappa)
    in_library = passes.bias_in_library(a, what.inner_kappa())
    z = overwritable(F.linear(a, weight, what.kappa * bias if in_library and bias is not None else None))
    passes.scale_output(_as_images(z), factor, None if in_library else bias, what.inner_kappa(), "none")
    return z, factor


def _as_images(x: Tensor) -> Tensor:
    """View (M, C) as images of one pixel, (M, C, 1, 1)."""
    return x[:, :, None, None]


class NormalizedLinearFunction(torch.autograd.Function):
    """Autograd of :func:`affine_like` and :func:`norm_like`; see the head of this file."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, what: LinearMap) -> Tensor:
        z, factor = _forward(x, weight, bias, what)
        ctx.save_for_backward(x, weight, bias, factor)
        ctx.what = what
        return as_output(z)

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple:
        x, weight, bias, factor = ctx.saved_tensors
        what = ctx.what
        if use_plain_gradient(dz):
            plain = partial(_plain, what=what)
            return *differentiable_gradients(plain, (x, weight, bias), ctx.needs_input_grad[:3], dz), None
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dx = dweight = None

        a = _as_images(gelu_again(x) if what.input_activation == "gelu" else x)
        in_library = passes.bias_in_library(x, what.inner_kappa())
        h, s, dbias = passes.scale_cotangent(
            _as_images(dz), factor, bias=None if what.norm_like else bias, kappa=what.inner_kappa(),
            sum_bias=needs_bias and not in_library,
        )  # fmt: skip
        rows = h.flatten(1)
        if needs_weight:
            dweight = rows.t() @ a.flatten(1)
        if needs_bias:
            dbias = what.kappa * rows.sum(0) if in_library else dbias.to(bias.dtype)
        if needs_x:
            dx = rows @ weight
            square = factor_square(factor, what.c, what.norm_like)
            passes.correct_pointwise(_as_images(dx), a, square, s, 1 / what.c**2)
            if what.input_activation == "gelu":
                dx = torch.ops.aten.gelu_backward.default(dx, x)
        return dx, dweight, dbias, None
