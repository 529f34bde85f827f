"""Sums over the window of a convolution, and their transpose: by a pooling kernel, or by adding axis by axis.

Pooling is one operation, but its CPU kernel for NCHW adds number by number, k² of them for every output. Adding shifted
views along rows and then columns takes 2k vectorised additions instead, and some ten operations.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten
IntPair = tuple[int, int]
FEW = 1 << 15  # terms that pooling adds in the time in which ten operations are launched


def window_sum(x: Tensor, kernel_size: IntPair, stride: IntPair, padding: IntPair, dilation: IntPair) -> Tensor:
    """Sum over the window of a convolution, per channel: (N, C, H, W) to (N, C, H_out, W_out)."""
    if kernel_size == (1, 1) and padding == (0, 0):
        return every(x, stride)
    if _use_pooling(x, x.numel() // (stride[0] * stride[1]), kernel_size, padding, dilation):
        return F.avg_pool2d(x, kernel_size, stride, padding, divisor_override=1)
    for axis in (0, 1):
        x = _add_along(x, 2 + axis, kernel_size[axis], dilation[axis], stride[axis], padding[axis], padding[axis])
    return x


def every(x: Tensor, stride: IntPair) -> Tensor:
    """The pixels that a 1x1 kernel of this stride reads."""
    return x if stride == (1, 1) else x[:, :, :: stride[0], :: stride[1]]


def window_sum_transpose(
    v: Tensor, size: IntPair, kernel_size: IntPair, stride: IntPair, padding: IntPair, dilation: IntPair
) -> Tensor:
    """Transpose of :func:`window_sum`: add each position's value to all pixels of its window.

    (N, C, H_out, W_out) to (N, C, H, W), where ``size`` is H and W.
    """
    if kernel_size == (1, 1) and stride == (1, 1) and padding == (0, 0):
        return v
    if _use_pooling(v, v.numel(), kernel_size, padding, dilation):
        if stride == (1, 1) and v.shape[2:] == size and kernel_size == (2 * padding[0] + 1, 2 * padding[1] + 1):
            return F.avg_pool2d(v, kernel_size, stride, padding, divisor_override=1)  # it is its own transpose
        order = torch.channels_last if v.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        pixels = torch.empty((*v.shape[:2], *size), device=v.device, dtype=v.dtype, memory_format=order)
        return aten.avg_pool2d_backward.default(v, pixels, kernel_size, stride, padding, False, True, 1)
    for axis in (0, 1):
        reach = dilation[axis] * (kernel_size[axis] - 1)
        spread = _spread(v, 2 + axis, stride[axis])
        before = reach - padding[axis]
        after = size[axis] + reach - before - spread.shape[2 + axis]
        v = _add_along(spread, 2 + axis, kernel_size[axis], dilation[axis], 1, before, after)
    return v


def _use_pooling(x: Tensor, positions: int, kernel_size: IntPair, padding: IntPair, dilation: IntPair) -> bool:
    # pooling has no dilation, and allows padding only up to half of the kernel
    if dilation != (1, 1) or 2 * padding[0] > kernel_size[0] or 2 * padding[1] > kernel_size[1]:
        return False
    if positions * kernel_size[0] * kernel_size[1] <= FEW:
        return True
    return not (x.is_cpu and x.is_contiguous()) or torch.compiler.is_compiling()


def _add_along(x: Tensor, dim: int, taps: int, dilation: int, stride: int, before: int, after: int) -> Tensor:
    """Σ_t x[stride · i + dilation · t] along one axis, with zeros put before and after it; negative ones cut off."""
    if before or after:
        x = F.pad(x, (before, after) if dim == 3 else (0, 0, before, after))
    length = (x.shape[dim] - dilation * (taps - 1) - 1) // stride + 1
    shifted = [_every(x.narrow(dim, t * dilation, (length - 1) * stride + 1), dim, stride) for t in range(taps)]
    total = shifted[0] + shifted[1] if taps > 1 else shifted[0]
    for term in shifted[2:]:
        total += term
    return total


def _spread(v: Tensor, dim: int, stride: int) -> Tensor:
    """Put ``stride`` - 1 zeros between neighbours along one axis."""
    if stride == 1:
        return v
    shape = list(v.shape)
    shape[dim] = (shape[dim] - 1) * stride + 1
    spread = v.new_zeros(shape)
    _every(spread, dim, stride).copy_(v)
    return spread


def _every(x: Tensor, dim: int, stride: int) -> Tensor:
    return x if stride == 1 else x[:, :, ::stride] if dim == 2 else x[..., ::stride]
