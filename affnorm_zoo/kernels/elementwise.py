"""Triton twins of :mod:`affnorm_zoo.ops.elementwise`, which launch the kernels of `affnorm_zoo.kernels._elementwise`.

Images are (N, C, H, W), dense in NCHW or NHWC order. One tensor decides the order; the launchers copy others that
differ. A map that all channels of a group share is (N, groups, H, W), in float32 and in the order of its images.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from affnorm_zoo.functional.activation import LEAKY_SLOPE
from affnorm_zoo.kernels._activation import ACTIVATION_CODES
from affnorm_zoo.kernels._elementwise import (
    INNER,
    INNER_BIAS,
    NO_BIAS,
    NO_SUM,
    NOTHING,
    OUTER_BIAS,
    OUTPUT,
    SUM_G,
    SUM_H,
    correct_kernel,
    scale_cotangent_kernel,
    scale_output_kernel,
    square_sum_kernel,
)
from affnorm_zoo.kernels._launch import (
    MOST_CHANNELS,
    NUM_WARPS,
    SUMMED_CHANNELS,
    TILE,
    Layout,
    Tile,
    launch,
    layout_of,
    tile_of,
)


def square_sum(x: Tensor, groups: int) -> Tensor:
    """Twin of :func:`affnorm_zoo.ops.elementwise.square_sum`."""
    layout = layout_of(x)
    out = layout.new_map(x, groups)
    _launch(square_sum_kernel, (layout.dense(x), out), (), layout, groups, tile_of(layout, groups))
    return out


def scale_output(
    y: Tensor, factor: Tensor, bias: Tensor | None, kappa: float | None, activation: str, keep: bool = False
) -> Tensor:
    """Twin of :func:`affnorm_zoo.ops.elementwise.scale_output`."""
    layout, groups = layout_of(y), factor.shape[1]
    dense = layout.dense(y)
    out = torch.empty_like(dense) if keep else dense
    _launch(
        scale_output_kernel, (dense, layout.dense(factor), bias, out), (kappa or 0.0, LEAKY_SLOPE),
        layout, groups, tile_of(layout, groups),
        BIAS=bias_kind(bias, kappa), ACTIVATION=ACTIVATION_CODES[activation],
    )  # fmt: skip
    return out if keep or out is y else y.copy_(out)


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
    """Twin of :func:`affnorm_zoo.ops.elementwise.scale_cotangent`."""
    other = output if output is not None else inner
    layout, groups = layout_of(dz if other is None else other), factor.shape[1]
    tile = tile_of(layout, groups, SUMMED_CHANNELS) if sum_bias else tile_of(layout, groups)
    what = NOTHING if other is None else INNER if output is None else OUTPUT
    kind = bias_kind(bias, kappa)
    dense = layout.dense(dz)
    h = torch.empty_like(dense)
    s = layout.new_map(h, groups) if what != NOTHING or kind == INNER_BIAS else None
    sums = h.new_empty((layout.blocks(tile), layout.channels), dtype=torch.float32) if sum_bias else None
    _launch(
        scale_cotangent_kernel,
        (dense, layout.dense(factor), None if other is None else layout.dense(other), bias, h, s, sums),
        (kappa or 0.0, LEAKY_SLOPE), layout, groups, tile, OTHER=what, BIAS=kind,
        SUM=NO_SUM if sums is None else SUM_G if kappa is None else SUM_H, ACTIVATION=ACTIVATION_CODES[activation],
    )  # fmt: skip
    dbias = None if sums is None else sums.sum(0) if kappa is None else kappa * sums.sum(0)
    return h, s, dbias


def correct_pointwise(dx: Tensor, x: Tensor, inv_square: Tensor, extra: Tensor | None) -> None:
    """Twin of :func:`affnorm_zoo.ops.elementwise.correct_pointwise`."""
    _launch_correct(dx, x, inv_square, extra, pointwise=True)


def correct(dx: Tensor, x: Tensor, factor: Tensor) -> None:
    """Twin of :func:`affnorm_zoo.ops.elementwise.correct`."""
    _launch_correct(dx, x, factor, None, pointwise=False)


def _launch_correct(dx: Tensor, x: Tensor, factor: Tensor, extra: Tensor | None, pointwise: bool) -> None:
    layout, groups = layout_of(dx), factor.shape[1]
    dense = layout.dense(dx)
    maps = (layout.dense(factor), None if extra is None else layout.dense(extra))
    # all channels of a pixel are in one tile, so the tile is read from memory once
    tile = tile_of(layout, groups, TILE if pointwise else MOST_CHANNELS)
    _launch(
        correct_kernel, (dense, layout.dense(x), *maps), (), layout, groups, tile,
        POINTWISE=pointwise, HAS_EXTRA=extra is not None,
    )  # fmt: skip
    if dense is not dx:
        dx.copy_(dense)


def bias_kind(bias: Tensor | None, kappa: float | None) -> int:
    """BIAS of the kernels: κ b before the factor, or b after it if there is no κ."""
    return NO_BIAS if bias is None else OUTER_BIAS if kappa is None else INNER_BIAS


def _launch(kernel: Any, tensors: tuple, numbers: tuple, layout: Layout, groups: int, tile: Tile, **flags: Any) -> None:
    launch(
        kernel, (layout.blocks(tile), triton.cdiv(groups, tile.groups)),
        *tensors, layout.pixels, groups, *numbers, **flags,
        GROUP_C=layout.channels // groups, CHANNELS_LAST=layout.channels_last,
        BLOCK_P=tile.pixels, BLOCK_G=tile.groups, BLOCK_C=tile.channels, num_warps=NUM_WARPS,
    )  # fmt: skip
