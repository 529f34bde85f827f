"""The passes over memory around a convolution, in as few and as few new tensors as separate operations allow.

All images are (N, C, H, W); a map that the channels of a group share is (N, groups, H, W), in float32 or wider.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._triton import has_triton

from affnorm_zoo.functional.activation import LEAKY_SLOPE
from affnorm_zoo.functional.patch_norm import box_sum
from affnorm_zoo.functional.scale import widen
from affnorm_zoo.kernels._launch import can_launch

aten = torch.ops.aten


def square_sum(x: Tensor, groups: int) -> Tensor:
    """Σ_c x² of every pixel, group by group."""
    if use_kernels(x):
        return _kernels().square_sum(x, groups)
    if groups == 1 and x.device.type == "cpu" and x.stride(1) == 1 and not torch.compiler.is_compiling():
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        return torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=wide).square_()  # one pass, no tensor of squares
    return split_groups(widen(x), groups).square().sum(dim=2)


def scale_output(y: Tensor, factor: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """act(y · factor + bias), written over y."""
    if use_kernels(y):
        return _kernels().scale_output(y, factor, bias, activation)
    split_groups(y, factor.shape[1]).mul_(factor.unsqueeze(2))
    if bias is not None:
        y.add_(bias.reshape(-1, 1, 1))
    if activation == "relu":
        y.relu_()
    elif activation == "leaky_relu":
        F.leaky_relu_(y, LEAKY_SLOPE)
    return y


def scale_cotangent(
    dz: Tensor,
    factor: Tensor,
    *,
    activation: str = "none",
    output: Tensor | None = None,
    inner: Tensor | None = None,
    outer_bias: Tensor | None = None,
    probe: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What the convolution's own backward starts from, and what is summed over channels on the way.

        g = act'(z) dz,    h = g · factor

    Args:
        dz: cotangent behind the activation.
        factor: c r of every position.
        activation: ``"none"`` or the one that gave ``output``.
        output: act(z); then s = Σ dz act(z) - Σ g outer_bias, since act'(z) z = act(z) for both activations.
        inner: the convolution's own output y; then s = Σ h y.
        outer_bias: (C,), what is added after the factor.
        probe: (C,); then s = Σ h probe.

    Returns:
        h, then s if there is anything to sum, then Σ g over images and positions if there is an ``outer_bias``.
    """
    if use_kernels(dz):
        return _kernels().scale_cotangent(
            dz, factor, activation=activation, output=output, inner=inner, outer_bias=outer_bias, probe=probe
        )
    groups = factor.shape[1]
    s = dbias = None
    # a buffer of the size of dz costs a CPU more than the arithmetic: one serves for the products, for g and for h
    one_buffer = not torch.compiler.is_compiling() and dz.dtype == factor.dtype
    buffer = torch.empty_like(dz) if one_buffer else None
    g = dz
    if output is not None:
        s = channel_dot(dz, output, groups, buffer)
        g = activation_backward(dz, output, activation, buffer)
        if outer_bias is not None:
            s = s - channel_sum(g, outer_bias, groups)
    if outer_bias is not None:
        dbias = g.sum((0, 2, 3), dtype=factor.dtype).to(dz.dtype)
    h = scale_groups(g, factor, buffer)
    if inner is not None:
        s = channel_dot(h, inner, groups)
    if probe is not None:
        s = channel_sum(h, probe, groups)
    return h, s, dbias


def correct_pointwise(dx: Tensor, x: Tensor, inv_square: Tensor, extra: Tensor | None) -> None:
    """dx -= x · r² s with s = Σ_c x dx + extra, in place; for a 1x1 kernel, pixels being positions."""
    if use_kernels(dx):
        _kernels().correct_pointwise(dx, x, inv_square, extra)
        return
    s = channel_dot(x, dx, inv_square.shape[1])
    if extra is not None:
        s = s + extra
    correct(dx, x, inv_square * s)


def correct(dx: Tensor, x: Tensor, factor: Tensor) -> None:
    """dx -= x · factor, in place."""
    if use_kernels(dx):
        _kernels().correct(dx, x, factor)
        return
    groups = factor.shape[1]
    if x.dtype == factor.dtype:
        split_groups(dx, groups).addcmul_(split_groups(x, groups), factor.unsqueeze(2), value=-1)
    else:
        split_groups(dx, groups).sub_(split_groups(x, groups) * factor.unsqueeze(2))


def use_kernels(x: Tensor) -> bool:
    """Whether the Triton twin of a pass takes this tensor; the compiler fuses the plain operations itself."""
    return not torch.compiler.is_compiling() and can_launch(x) and has_triton()


def _kernels() -> Any:
    from affnorm_zoo.kernels import passes  # Triton is there on Linux only

    return passes


def activation_backward(dz: Tensor, z: Tensor, activation: str, out: Tensor | None) -> Tensor:
    """Cotangent before the activation, from the one behind it and the activation's output."""
    if activation == "relu":
        if out is None:
            return aten.threshold_backward(dz, z, 0)
        return aten.threshold_backward.grad_input(dz, z, 0, grad_input=out)
    if out is None:
        return aten.leaky_relu_backward(dz, z, LEAKY_SLOPE, True)
    return aten.leaky_relu_backward.grad_input(dz, z, LEAKY_SLOPE, True, grad_input=out)


def scale_groups(g: Tensor, factor: Tensor, out: Tensor | None) -> Tensor:
    """g · factor, in the dtype of g."""
    groups = factor.shape[1]
    if out is None:
        return (split_groups(g, groups) * factor.unsqueeze(2)).to(g.dtype).reshape(g.shape)
    torch.mul(split_groups(g, groups), factor.unsqueeze(2), out=split_groups(out, groups))
    return out


def channel_dot(a: Tensor, b: Tensor, groups: int, buffer: Tensor | None = None) -> Tensor:
    """Σ_c a b of every position, group by group, in float32 or wider; ``buffer`` may hold the products."""
    if buffer is None:
        return (split_groups(widen(a), groups) * split_groups(b, groups)).sum(dim=2)
    return split_groups(torch.mul(a, b, out=buffer), groups).sum(dim=2)


def channel_sum(a: Tensor, vector: Tensor, groups: int) -> Tensor:
    """Σ_c a · vector of every position, group by group, for one number a channel, in float32 or wider."""
    exact = a.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(a.device.type)
    if groups == 1 and exact and not torch.compiler.is_compiling():
        if a.stride(1) == 1:
            return torch.matmul(a.movedim(1, -1), vector).unsqueeze(1)
        return torch.matmul(vector, a.flatten(2)).unflatten(1, a.shape[2:]).unsqueeze(1)
    return channel_dot(a, vector.reshape(1, -1, 1, 1), groups)


def split_groups(x: Tensor, groups: int) -> Tensor:
    """View of the channels as (groups, channels a group)."""
    return x.unflatten(1, (groups, x.shape[1] // groups))


def window_sum(
    x: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Sum over the window of a convolution; the pooling kernel where it can, the definition elsewhere."""
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
    """Transpose of :func:`window_sum`: every position's value is added to all pixels of its window."""
    n, groups, height, width = v.shape
    if _is_poolable(kernel_size, padding, dilation):
        pixels = v.new_empty((n, groups, *size))
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
    # pooling takes no dilation, and no padding past half of the kernel
    return dilation == (1, 1) and all(2 * p <= k for p, k in zip(padding, kernel_size, strict=True))
