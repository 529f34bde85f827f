"""The passes over memory around a convolution, in as few and as few new tensors as separate operations allow.

All images are (N, C, H, W); a map that the channels of a group share is (N, groups, H, W), in float32 or wider.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._triton import has_triton

from affnorm_zoo.functional.activation import LEAKY_SLOPE
from affnorm_zoo.functional.scale import widen
from affnorm_zoo.kernels._launch import can_launch

aten = torch.ops.aten


def bias_in_library(x: Tensor, kappa: float | None) -> bool:
    """Whether the library's product of x adds κ b and sums its gradient, and not the passes behind it.

    On a CPU the library has the values in its registers, so both are free there. On other devices each would be a pass
    of its own, while the passes have the values in hand; as plain sums the compiler can join them to others. A bias
    that is added behind the factor, with a κ of None, is always theirs.
    """
    return kappa is not None and x.device.type == "cpu"


def square_sum(x: Tensor, groups: int) -> Tensor:
    """Σ_c x² of every pixel, group by group."""
    if use_kernels(x):
        return _kernels().square_sum(x, groups)
    if groups == 1 and x.device.type == "cpu" and x.stride(1) == 1 and not torch.compiler.is_compiling():
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        return torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=wide).square_()  # one pass, no tensor of squares
    return group_sum(widen(x).square(), groups)


def scale_output(
    y: Tensor, factor: Tensor, bias: Tensor | None, kappa: float | None, activation: str, keep: bool = False
) -> Tensor:
    """act((y + κ bias) · factor), or act(y · factor + bias) for a κ of None; over y, or with ``keep`` beside it."""
    if use_kernels(y):
        return _kernels().scale_output(y, factor, bias, kappa, activation, keep)
    if bias is not None and kappa is not None:
        vector = kappa * bias.reshape(-1, 1, 1)
        y, keep = y + vector if keep else y.add_(vector), False
    if keep:
        z = scale_groups(y, factor)
    else:
        view_factor, view = by_group(factor, y)
        view.mul_(view_factor)
        z = y
    if bias is not None and kappa is None:
        z.add_(bias.reshape(-1, 1, 1))
    if activation == "relu":
        z.relu_()
    elif activation == "leaky_relu":
        F.leaky_relu_(z, LEAKY_SLOPE)
    return z


def scale_cotangent(
    dz: Tensor,
    factor: Tensor,
    *,
    activation: str = "none",
    output: Tensor | None = None,
    inner: Tensor | None = None,
    bias: Tensor | None = None,
    kappa: float | None = None,
    sum_bias: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What the convolution's own backward starts from, and the sums that can be taken on the way.

        g = act'(z) dz,    h = g · factor

    Args:
        dz: cotangent behind the activation.
        factor: c r of every position.
        activation: ``"none"`` or the one that gave ``output``.
        output: z = act(...); then s = Σ dz z - Σ g bias, since act'(v) v = act(v) for both activations.
        inner: the convolution's own output y; then s = Σ h (y + κ bias).
        bias: (C,), left out of these sums where it is None; alone it gives s = Σ h κ bias. With ``output`` it counts
            only where it is added after the factor: leave it out for an inner one.
        kappa: multiplies a bias inside the quotient; None for one that is added after the factor.
        sum_bias: whether to return the gradient of the bias.

    Returns:
        h, then s if there is anything to sum, then κ Σ h or, for a κ of None, Σ g over images and positions, in
        float32 or wider.
    """
    if use_kernels(dz):
        return _kernels().scale_cotangent(
            dz, factor, activation=activation, output=output, inner=inner, bias=bias, kappa=kappa, sum_bias=sum_bias
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
        if bias is not None:
            s = s - channel_sum(g, bias, groups)
    if sum_bias and kappa is None:
        dbias = g.sum((0, 2, 3), dtype=factor.dtype)
    h = scale_groups(g, factor, buffer)
    if inner is not None:
        s = channel_dot(h, inner, groups)
    if bias is not None and kappa is not None:
        with_bias = channel_sum(h, kappa * bias, groups)
        s = with_bias if s is None else s + with_bias
    if sum_bias and kappa is not None:
        dbias = kappa * h.sum((0, 2, 3), dtype=factor.dtype)
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
    factor, dx, x = by_group(factor, dx, x)
    if x.dtype == factor.dtype:
        dx.addcmul_(x, factor, value=-1)
    else:
        dx.sub_(x * factor)


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


def scale_groups(g: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    """g · factor, in the dtype of g; over ``out`` if it is given."""
    if torch.compiler.is_compiling():
        factor, g = by_group(factor, g)
        return (g * factor).to(g.dtype)
    h = torch.empty_like(g) if out is None else out
    factor, g_view, h_view = by_group(factor, g, h)
    torch.mul(g_view, factor, out=h_view)
    return h


def channel_dot(a: Tensor, b: Tensor, groups: int, buffer: Tensor | None = None) -> Tensor:
    """Σ_c a b of every position, group by group, in float32 or wider; ``buffer`` may hold the products."""
    return group_sum(widen(a) * b if buffer is None else torch.mul(a, b, out=buffer), groups)


def channel_sum(a: Tensor, vector: Tensor, groups: int) -> Tensor:
    """Σ_c a · vector of every position, group by group, for one number per channel, in float32 or wider."""
    exact = a.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(a.device.type)
    if groups == 1 and exact and not torch.compiler.is_compiling():
        if a.stride(1) == 1:
            return torch.matmul(a.movedim(1, -1), vector).unsqueeze(1)
        return torch.matmul(vector, a.flatten(2)).unflatten(1, a.shape[2:]).unsqueeze(1)
    return channel_dot(a, vector.reshape(1, -1, 1, 1), groups)


def group_sum(x: Tensor, groups: int) -> Tensor:
    """Σ_c x of every position, group by group, in x's order of the axes in memory."""
    if groups == 1:
        return x.sum(1, keepdim=True)
    in_order = x.is_contiguous(memory_format=torch.channels_last) and torch.compiler.is_compiling()  # by_group says why
    sums = split_groups(x, groups).sum(2)
    return sums.contiguous(memory_format=torch.channels_last) if in_order else sums


def by_group(factor: Tensor, *images: Tensor) -> tuple[Tensor, ...]:
    """A map (N, groups, H, W) and images (N, C, H, W) as views whose shapes multiply.

    Compiled code writes tensors of five axes in the order of the axes, whatever their order in memory was: there, and
    for one group, images keep their four. Elsewhere the map would have to be written out for every channel.
    """
    groups = factor.shape[1]
    if groups == 1:
        return factor, *images
    if torch.compiler.is_compiling():
        shape = images[0].shape
        return factor.unsqueeze(2).expand(-1, -1, shape[1] // groups, -1, -1).reshape(shape), *images
    return factor.unsqueeze(2), *(split_groups(x, groups) for x in images)


def split_groups(x: Tensor, groups: int) -> Tensor:
    """View of the channels as (groups, channels of a group)."""
    return x.unflatten(1, (groups, x.shape[1] // groups))
