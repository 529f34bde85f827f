"""Sums over the window of a convolution, and their transpose. They use the pooling kernels where possible."""

import torch
from torch import Tensor
from torch.nn import functional as F

from affnorm_zoo.functional.patch_norm import box_sum

aten = torch.ops.aten


def window_sum(
    x: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Sum over the window of a convolution: with the pooling kernel where possible, otherwise by definition."""
    if kernel_size == (1, 1) and padding == (0, 0):
        return x[:, :, :: stride[0], :: stride[1]]
    if _is_poolable(kernel_size, padding, dilation):
        return F.avg_pool2d(x, kernel_size, stride, padding, divisor_override=1)
    return box_sum(x, kernel_size, stride, padding, dilation)


def window_sum_transpose(
    v: Tensor,
    size: tuple[int, int],
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Transpose of :func:`window_sum`: add each position's value to all pixels of its window."""
    n, groups, height, width = v.shape
    if _is_poolable(kernel_size, padding, dilation):
        order = torch.channels_last if v.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        pixels = torch.empty((n, groups, *size), device=v.device, dtype=v.dtype, memory_format=order)
        return aten.avg_pool2d_backward(v, pixels, kernel_size, stride, padding, False, True, 1)
    padded = v.new_zeros((n, groups, size[0] + 2 * padding[0], size[1] + 2 * padding[1]))
    for i in range(kernel_size[0]):
        for j in range(kernel_size[1]):
            top, left = i * dilation[0], j * dilation[1]
            rows = slice(top, top + (height - 1) * stride[0] + 1, stride[0])
            columns = slice(left, left + (width - 1) * stride[1] + 1, stride[1])
            padded[:, :, rows, columns] += v
    return padded[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]


def _is_poolable(kernel_size: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]) -> bool:
    # pooling has no dilation, and allows padding only up to half of the kernel
    return dilation == (1, 1) and all(2 * p <= k for p, k in zip(padding, kernel_size, strict=True))
