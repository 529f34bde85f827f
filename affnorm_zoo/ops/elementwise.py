"""Element-wise passes around a convolution as plain operations, with the fewest temporaries that these allow.

All images are (N, C, H, W). A map that all channels of a group share is (N, groups, H, W), in float32 or wider. The ops
call the passes through :mod:`affnorm_zoo.ops.passes`, which chooses how a pass runs.
"""

import torch
from torch import Tensor

from affnorm_zoo.functional.activation import FROM_INPUT
from affnorm_zoo.functional.scale import widen
from affnorm_zoo.ops.activation import activate_, activation_backward


def square_sum(x: Tensor, groups: int, out: Tensor | None = None) -> Tensor:
    """Σ_c x² per pixel and group; written into ``out`` if given."""
    if groups == 1 and x.device.type == "cpu" and x.stride(1) == 1 and not torch.compiler.is_compiling():
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=wide, out=out)  # one pass, no tensor of squares
        return norm.square_()
    squares = group_sum(widen(x).square(), groups)
    return squares if out is None else out.copy_(squares)


def scale_output(
    y: Tensor,
    factor: Tensor,
    bias: Tensor | None,
    kappa: float | None,
    activation: str,
    keep: bool = False,
    shortcut: Tensor | None = None,
) -> Tensor:
    """act((y + κ bias) · factor); if κ is None, act(y · factor + bias). Overwrites y unless ``keep``.

    With a shortcut, and then no activation, relu(z + shortcut), where z is the above.
    """
    if activation in FROM_INPUT and y.dtype != factor.dtype:
        # rounded once, behind the activation, and not before it as well
        z = scale_output(y.to(factor.dtype), factor, bias, kappa, activation)
        return z.to(y.dtype) if keep else y.copy_(z)
    if bias is not None and kappa is not None:
        vector = kappa * bias.reshape(-1, 1, 1)
        y, keep = y + vector if keep else y.add_(vector), False
    if shortcut is not None:  # product and sum in one pass
        new = keep or torch.is_grad_enabled()  # autograd refuses to write into a tensor
        view_factor, view, view_shortcut = by_group(factor, y, shortcut)
        z = torch.addcmul(view_shortcut, view, view_factor, out=None if new else view).view(y.shape)
    elif keep:
        z = scale_groups(y, factor)
    else:
        view_factor, view = by_group(factor, y)
        view.mul_(view_factor)
        z = y
    if bias is not None and kappa is None:
        z.add_(bias.reshape(-1, 1, 1))
    if shortcut is not None:
        return z.relu_()
    activate_(z, activation)
    return z


def scale_cotangent(
    dz: Tensor,
    factor: Tensor,
    output: Tensor | None = None,
    shortcut: Tensor | None = None,
    inner: Tensor | None = None,
    *,
    activation: str = "none",
    bias: Tensor | None = None,
    kappa: float | None = None,
    sum_bias: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The cotangent for the convolution's own backward, and the sums that the same pass can take.

        g = act'(z) dz,    h = g · factor

    Args:
        dz: cotangent after the activation.
        factor: c r per position.
        activation: ``"none"``, or the activation's name, for which ``output`` or ``inner`` must be given.
        output: act(z), for no activation and those of ``FROM_OUTPUT``; then s = Σ g z - Σ g bias. Σ g z is taken as
            Σ dz act(z), since act'(z) z = act(z) where act is linear through 0; for relu6 as Σ g act(z).
        shortcut: subtracted from ``output``, which then is relu(z + shortcut); dz must be 0 where that is 0.
        inner: the convolution's own output y; then s = Σ h (y + κ bias). With an activation, which is then one of
            ``FROM_INPUT``, z is computed from it again.
        bias: (C,), omitted if None. Without ``output`` and ``inner``, s = Σ h κ bias. With ``output``, pass only a
            bias that is added after the factor, not one inside the quotient.
        kappa: multiplies a bias inside the quotient; None if the bias is added after the factor.
        sum_bias: whether to return the gradient of the bias.

    Returns:
        h; s, if there is anything to sum; and the gradient of the bias: κ Σ h, or Σ g if κ is None, over images and
        positions. Sums are in float32 or wider.
    """
    groups = factor.shape[1]
    s = dbias = spare = None  # spare: like dz, and no longer read. On a CPU a new tensor costs more than the arithmetic
    may_reuse = not torch.compiler.is_compiling() and dz.dtype == factor.dtype
    g = dz
    if output is not None:
        if activation == "relu6":
            g = activation_backward(dz, output, activation)
        if shortcut is None:
            products = widen(g) * output
        else:
            products = output - shortcut  # a tensor of our own
            products = products.mul_(g) if may_reuse else widen(g) * products
        s = group_sum(products, groups)
        spare = products if may_reuse and s is not products else None
        if activation not in ("none", "relu6"):
            g = activation_backward(dz, output, activation, spare)
        if bias is not None:
            s = s - channel_sum(g, bias, groups)
    elif inner is not None and activation != "none":
        z = scale_output(inner.to(factor.dtype), factor, bias, kappa, "none", keep=inner.dtype == factor.dtype)
        g = activation_backward(dz.to(factor.dtype), z, activation)
        spare = z if may_reuse else None
    if sum_bias and kappa is None:
        dbias = g.sum((0, 2, 3), dtype=factor.dtype)
    h = scale_groups(g, factor, spare).to(dz.dtype)
    if inner is not None:
        s = channel_dot(h, inner, groups)
    if bias is not None and kappa is not None:
        with_bias = channel_sum(h, kappa * bias, groups)
        s = with_bias if s is None else s + with_bias
    if sum_bias and kappa is not None:
        dbias = kappa * h.sum((0, 2, 3), dtype=factor.dtype)
    return h, s, dbias


def correct_pointwise(dx: Tensor, x: Tensor, square: Tensor, extra: Tensor | None, rate: float = 1.0) -> None:
    """dx -= rate · x · square · s, s = Σ_c x dx + extra, in place; for a 1x1 kernel, where a pixel is a position."""
    s = channel_dot(x, dx, square.shape[1])
    if extra is not None:
        s = s + extra
    correct(dx, x, square * s, rate)


def correct(dx: Tensor, x: Tensor, factor: Tensor, rate: float = 1.0) -> None:
    """dx -= rate · x · factor, in place."""
    factor, dx, x = by_group(factor, dx, x)
    if x.dtype == factor.dtype:
        dx.addcmul_(x, factor, value=-rate)
    else:
        dx.sub_(x * factor, alpha=rate)


def scale_groups(g: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    """g · factor, in the dtype of g; written into ``out`` if given."""
    if torch.compiler.is_compiling() or (factor.shape[1] == 1 and out is None):
        factor, g = by_group(factor, g)
        return (g * factor).to(g.dtype)
    h = torch.empty_like(g) if out is None else out
    factor, g_view, h_view = by_group(factor, g, h)
    torch.mul(g_view, factor, out=h_view)
    return h


def channel_dot(a: Tensor, b: Tensor, groups: int) -> Tensor:
    """Σ_c a b per position and group, in float32 or wider."""
    return group_sum(widen(a) * b, groups)


def channel_sum(a: Tensor, vector: Tensor, groups: int) -> Tensor:
    """Σ_c a · vector per position and group, with one number per channel, in float32 or wider."""
    exact = a.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(a.device.type)
    if groups == 1 and exact and not torch.compiler.is_compiling():
        if a.stride(1) == 1:
            return torch.matmul(a.movedim(1, -1), vector).unsqueeze(1)
        return torch.matmul(vector, a.flatten(2)).view(a.shape[0], 1, *a.shape[2:])
    return channel_dot(a, vector.reshape(1, -1, 1, 1), groups)


def group_sum(x: Tensor, groups: int) -> Tensor:
    """Σ_c x of every position, group by group, in x's order of the axes in memory."""
    if groups == 1:
        return x.sum(1, keepdim=True)
    if groups == x.shape[1]:
        return x
    in_order = x.is_contiguous(memory_format=torch.channels_last) and torch.compiler.is_compiling()  # by_group says why
    sums = split_groups(x, groups).sum(2)
    return sums.contiguous(memory_format=torch.channels_last) if in_order else sums


def by_group(factor: Tensor, *images: Tensor) -> tuple[Tensor, ...]:
    """A map (N, groups, H, W) and images (N, C, H, W) as views whose shapes broadcast.

    Compiled code writes tensors of five axes in the order of the axes, whatever their order in memory was. There the
    map is expanded and images keep their four axes. In eager mode expanding would write the map out for every channel,
    so images are split into groups instead.
    """
    groups = factor.shape[1]
    if groups == 1:
        return factor, *images
    if torch.compiler.is_compiling():
        shape = images[0].shape
        return factor.unsqueeze(2).expand(-1, -1, shape[1] // groups, -1, -1).reshape(shape), *images
    return factor.unsqueeze(2), *(split_groups(x, groups) for x in images)


def split_groups(x: Tensor, groups: int) -> Tensor:
    """View the channels as (groups, channels per group)."""
    return x.unflatten(1, (groups, x.shape[1] // groups))
