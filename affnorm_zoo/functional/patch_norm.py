from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from affnorm_zoo.functional.activation import apply_activation, check_activation
from affnorm_zoo.functional.scale import inverse_norm, resolve_scale, widen

VARIANTS = ("affine_like", "norm_like")


def check_variant(variant: str) -> None:
    """Raise ValueError unless the variant is known."""
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")


def patch_norm_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    variant: str = "affine_like",
    scale: str | tuple[float, float] = "unit",
    activation: str = "none",
) -> Tensor:
    """Convolve, and divide each output position by the length of the patch that it reads.

        affine_like:  z_p = c (W∗x + κ b)_p / √(‖x_p‖² + κ²)
        norm_like:    z_p = c (W∗x)_p / ‖x_p‖ + b

    x_p is the patch of one group under the output position p, with zeros where the input is padded. The factor by which
    a gradient step moves z_p through its own patch is c² (norm_like: c² + 1) at every position and in every sample.
    Normalising x first cannot give this result: one pixel lies in many patches, and each patch has its own divisor.

    Args:
        x: (N, C_in, H, W) or (C_in, H, W), any floating dtype; squares are summed in float32 or wider.
        weight: (C_out, C_in / groups, kernel_h, kernel_w).
        bias: (C_out,) or None.
        stride, padding, dilation, groups: as in :func:`torch.nn.functional.conv2d`; ``padding`` may be ``"same"``
            (stride 1) or ``"valid"``.
        variant: ``"affine_like"`` or ``"norm_like"``.
        scale: ``"unit"`` (c = κ = 1), ``"rms"`` (c = κ = √n, n = C_in/groups·kernel_h·kernel_w), ``"rms4"``
            (c = √n, κ = 4√n) or a pair (c, κ).
        activation: applied to z; one of :data:`affnorm_zoo.functional.activation.ACTIVATIONS`.

    Returns:
        (N, C_out, H_out, W_out), or without N, in the dtype of the convolution. For a patch of zeros affine_like
        gives c b. norm_like gives b, with a zero gradient of x and W.

    Raises:
        ValueError: the shapes do not match, or ``variant``, ``scale``, ``padding`` or ``activation`` is unknown.

    Source:
        Bird 2025, https://arxiv.org/abs/2512.22247, "PatchNorm". ``"unit"`` is the paper's form.
    """
    check_conv_shapes(x, weight, bias, groups)
    check_activation(activation)
    check_variant(variant)
    c, kappa = resolve_scale(scale, weight[0].numel())
    strides: tuple[int, int] = _pair(stride)
    dilations: tuple[int, int] = _pair(dilation)
    pads, conv_padding = split_padding(padding, weight.shape[2:], strides, dilations)
    images = x if x.dim() == 4 else x.unsqueeze(0)
    if any(pads):
        images = F.pad(images, pads)
    z = patch_norm_map(
        images, weight, bias, strides, conv_padding, dilations, groups, c, kappa, variant == "norm_like", activation
    )
    return z if x.dim() == 4 else z.squeeze(0)


def patch_norm_map(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    c: float,
    kappa: float,
    norm_like: bool,
    activation: str,
) -> Tensor:
    """The formula of :func:`patch_norm_conv2d` with its arguments resolved; TorchScript compiles this function."""
    square_sum = patch_square_sum(x, (weight.shape[2], weight.shape[3]), stride, padding, dilation, groups)
    if norm_like:
        y = F.conv2d(x, weight, None, stride, padding, dilation, groups)
        z = scale_groups(y, c * inverse_norm(square_sum, 0.0))
        if bias is not None:
            z = z + bias.reshape(-1, 1, 1)
    else:
        kappa_bias = None if bias is None else kappa * bias
        y = F.conv2d(x, weight, kappa_bias, stride, padding, dilation, groups)
        z = scale_groups(y, c * inverse_norm(square_sum, kappa))
    return apply_activation(z, activation).to(y.dtype)


def patch_square_sum(
    x: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """‖x_p‖² for every output position: (N, C, H, W) to (N, groups, H_out, W_out), float32 or wider.

    This is the box sum of Σ_c x² over the kernel's window. A convolution with ones would need a buffer, and autocast
    would round it.
    """
    squares = widen(x).square().reshape(x.shape[0], groups, x.shape[1] // groups, x.shape[2], x.shape[3]).sum(dim=2)
    return box_sum(squares, kernel_size, stride, padding, dilation)


def box_sum(
    x: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Sum over the window of a convolution, per channel: (N, C, H, W) to (N, C, H_out, W_out)."""
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    if dilation == (1, 1):
        # not divisor_override=1, which ONNX's AveragePool lacks
        return F.avg_pool2d(x, kernel_size, stride) * (kernel_size[0] * kernel_size[1])
    # pooling has no dilation
    rows = dilated_sum(x, 2, kernel_size[0], dilation[0])
    return dilated_sum(rows, 3, kernel_size[1], dilation[1])[:, :, :: stride[0], :: stride[1]]


def dilated_sum(x: Tensor, dim: int, taps: int, dilation: int) -> Tensor:
    """Sum of ``taps`` entries spaced ``dilation`` apart along ``dim``, at every position where they fit."""
    length = x.shape[dim] - dilation * (taps - 1)
    total = x.narrow(dim, 0, length)
    for tap in range(1, taps):
        total = total + x.narrow(dim, tap * dilation, length)
    return total


def scale_groups(y: Tensor, factor: Tensor) -> Tensor:
    """y (N, C, H, W) times a factor (N, groups, H, W) that all channels of a group share."""
    groups = factor.shape[1]
    if groups == 1:
        return y * factor
    n, channels, height, width = y.shape
    return (y.reshape(n, groups, channels // groups, height, width) * factor.unsqueeze(2)).reshape(y.shape)


def split_padding(
    padding: int | tuple[int, int] | str,
    kernel_size: tuple[int, ...],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """Split a padding into explicit zeros (left, right, top, bottom) and a symmetric remainder."""
    none = (0, 0, 0, 0)
    if not isinstance(padding, str):
        return none, _pair(padding)
    if padding == "valid":
        return none, (0, 0)
    if padding != "same":
        raise ValueError(f"padding must be an int, a pair of ints, 'same' or 'valid', got {padding!r}")
    if tuple(stride) != (1, 1):
        raise ValueError(f"padding='same' needs stride 1, got stride {tuple(stride)}")
    total_h, total_w = (d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True))
    if total_h % 2 == 0 and total_w % 2 == 0:
        return none, (total_h // 2, total_w // 2)
    # an odd zero goes to the right or bottom, as in torch
    return (total_w // 2, total_w - total_w // 2, total_h // 2, total_h - total_h // 2), (0, 0)


def check_conv_shapes(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> None:
    """Raise ValueError unless the shapes of x, weight and bias match each other and ``groups``."""
    if weight.dim() != 4:
        raise ValueError(f"weight must have shape (C_out, C_in/groups, kernel_h, kernel_w), got {tuple(weight.shape)}")
    if x.dim() not in (3, 4):
        raise ValueError(f"x must have shape (N, C, H, W) or (C, H, W), got {tuple(x.shape)}")
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"groups must divide the {weight.shape[0]} output channels, got {groups}")
    if x.shape[-3] != weight.shape[1] * groups:
        raise ValueError(f"x must have {weight.shape[1] * groups} channels to fit the weight, got {tuple(x.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
