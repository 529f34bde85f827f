"""Weight standardisation that saves only its parameters for the backward.

Here x̂ = (W - mean) / σ and Ŵ = gain x̂ / c. G is a cotangent of Ŵ; means are over each output channel's kernel:

    dgain = Σ G x̂ / c        dW = gain / (c σ) (G - mean(G) - x̂ mean(G x̂))
"""

from typing import Any

import torch
from torch import Tensor

from affnorm_zoo.functional.scale import widen
from affnorm_zoo.functional.weight_standardization import standardize_weight_map
from affnorm_zoo.ops.dispatch import use_plain_path


def standardize(weight: Tensor, gain: Tensor | None, c: float, eps: float) -> Tensor:
    """The lean form of :func:`affnorm_zoo.functional.weight_standardization.standardize_weight_map`."""
    if torch.jit.is_scripting():
        return standardize_weight_map(weight, gain, c, eps)
    else:  # noqa: RET505 TorchScript skips code only in an else branch
        return _lean(weight, gain, c, eps)


def _lean(weight: Tensor, gain: Tensor | None, c: float, eps: float) -> Tensor:
    if use_plain_path() or not torch.is_grad_enabled():
        return standardize_weight_map(weight, gain, c, eps)
    return StandardizeFunction.apply(weight, gain, c, eps)


class StandardizeFunction(torch.autograd.Function):
    """Autograd of :func:`standardize`; see the head of this file."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gain: Tensor | None, c: float, eps: float) -> Tensor:
        ctx.save_for_backward(weight, gain)
        ctx.c, ctx.eps = c, eps
        return standardize_weight_map(weight, gain, c, eps)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple:
        weight, gain = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            standardized = standardize_weight_map(weight, gain, ctx.c, ctx.eps)
            wanted = [t for t, needed in zip((weight, gain), ctx.needs_input_grad[:2], strict=True) if needed]
            gradients = iter(torch.autograd.grad(standardized, wanted, upstream, create_graph=True))
            return *(next(gradients) if needed else None for needed in ctx.needs_input_grad[:2]), None, None
        wide, g = widen(weight).flatten(1), widen(upstream).flatten(1)
        centered = wide - wide.mean(1, keepdim=True)
        inv_std = torch.rsqrt(centered.square().mean(1, keepdim=True) + ctx.eps)
        normalized = centered * inv_std
        projection = g * normalized
        dgain = None if gain is None else (projection.sum(1) / ctx.c).to(gain.dtype)
        dweight = (g - g.mean(1, keepdim=True) - normalized * projection.mean(1, keepdim=True)) * (inv_std / ctx.c)
        if gain is not None:
            dweight = dweight * gain[:, None]
        return dweight.reshape(weight.shape).to(weight.dtype), dgain, None, None
