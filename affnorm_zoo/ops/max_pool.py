"""Max pooling that saves its input alone, not the positions of the maxima as well, eight bytes for each output.

Behind a fused ReLU the input is saved by the layer that made it, so that pooling saves nothing more. The backward pools
again to find the positions.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from affnorm_zoo.ops.dispatch import use_plain_path

aten = torch.ops.aten
IntPair = tuple[int, int]


def max_pool(x: Tensor, kernel_size: IntPair, stride: IntPair, padding: IntPair, dilation: IntPair) -> Tensor:
    """The lean form of :func:`torch.nn.functional.max_pool2d`, for (N, C, H, W) and (C, H, W)."""
    if torch.jit.is_scripting():
        return F.max_pool2d(x, kernel_size, stride, padding, dilation)
    else:  # noqa: RET505 TorchScript skips code only in an else branch
        needs_no_gradient = not (torch.is_grad_enabled() and x.requires_grad)
        # the compiler keeps a byte for each output instead
        if use_plain_path() or torch.compiler.is_compiling() or needs_no_gradient:
            return F.max_pool2d(x, kernel_size, stride, padding, dilation)
        return MaxPoolFunction.apply(x, (kernel_size, stride, padding, dilation))


class MaxPoolFunction(torch.autograd.Function):
    """Autograd of :func:`max_pool`; see the head of this file."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: tuple[IntPair, IntPair, IntPair, IntPair]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.window = window
        return F.max_pool2d(x, *window)

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *torch.autograd.grad(F.max_pool2d(x, *ctx.window), [x], dz, create_graph=True), None
        _, positions = aten.max_pool2d_with_indices(x, *ctx.window)
        return aten.max_pool2d_with_indices_backward(dz, x, *ctx.window, False, positions), None
