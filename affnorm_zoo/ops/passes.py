"""Where an element-wise pass runs: in a Triton kernel, piece by piece on a CPU, or as the plain operations.

This is the one place that chooses; :mod:`affnorm_zoo.ops.elementwise` defines every pass.

- On a GPU one kernel reads and writes each tensor once.
- On a CPU half precision runs piece by piece. Each piece is widened to float32 and rounded once, at the end. As one
  operation, torch has no fast path from half precision and a float32 map; and a wide copy of the whole tensor
  goes through memory, where a piece stays in the cache.
- Otherwise the operations run on whole tensors: the compiler fuses them, and pieces of float32 gain nothing on a CPU.
"""

from collections.abc import Iterator
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.utils._triton import has_triton

from affnorm_zoo.functional.scale import widen
from affnorm_zoo.kernels._launch import can_launch
from affnorm_zoo.ops import elementwise
from affnorm_zoo.ops.activation import activate_

PIECE = 1 << 20  # elements: 4 MiB of float32. Smaller pieces lose more to calls than they gain from the cache
HALF = (torch.bfloat16, torch.float16)


def bias_in_library(x: Tensor, kappa: float | None) -> bool:
    """Whether the library's product of x adds κ b, and a sum is its gradient; otherwise the passes after it do both.

    On a CPU the library has the values in registers, so the bias is free there. On other devices it would be a separate
    pass, but our passes read the values anyway. Our passes always add a bias that comes after the factor (κ is None).
    """
    return kappa is not None and x.is_cpu


def square_sum(x: Tensor, groups: int) -> Tensor:
    """:func:`affnorm_zoo.ops.elementwise.square_sum`."""
    if use_kernels(x):
        return _kernels().square_sum(x, groups)
    if not use_pieces(x):
        return elementwise.square_sum(x, groups)
    out = torch.empty(x.shape[0], groups, *x.shape[2:], dtype=torch.float32)
    for x_, out_ in pieces(x, out):
        elementwise.square_sum(x_, groups, out_)
    return out


def scale_output(
    y: Tensor,
    factor: Tensor,
    bias: Tensor | None,
    kappa: float | None,
    activation: str,
    keep: bool = False,
    shortcut: Tensor | None = None,
) -> Tensor:
    """:func:`affnorm_zoo.ops.elementwise.scale_output`."""
    if use_kernels(y):
        z = _kernels().scale_output(y, factor, bias, kappa, activation, keep)
        return z if shortcut is None else z.add_(shortcut).relu_()
    if not use_pieces(y):
        return elementwise.scale_output(y, factor, bias, kappa, activation, keep, shortcut)
    z = torch.empty_like(y) if keep else y
    if bias is None and activation in ("none", "relu") and _are_rows(y, factor):
        _scale_rows(y, factor, out=z)
        activate_(z, activation)
        return z if shortcut is None else z.add_(shortcut).relu_()
    bias = _widen(bias)
    for z_, y_, factor_, shortcut_ in pieces(z, y, factor, shortcut):
        z_.copy_(elementwise.scale_output(widen(y_), factor_, bias, kappa, activation, shortcut=shortcut_))
    return z


def scale_cotangent(dz: Tensor, factor: Tensor, **given: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """:func:`affnorm_zoo.ops.elementwise.scale_cotangent`, with the same keywords."""
    if use_pieces(dz):
        return _scale_cotangent_pieces(dz, factor, **given)
    if not use_kernels(dz):
        return elementwise.scale_cotangent(dz, factor, **given)
    shortcut = given.pop("shortcut", None)
    if shortcut is not None:
        given["output"] = given["output"] - shortcut
    return _kernels().scale_cotangent(dz, factor, **given)


def _scale_cotangent_pieces(
    dz: Tensor,
    factor: Tensor,
    *,
    output: Tensor | None = None,
    shortcut: Tensor | None = None,
    inner: Tensor | None = None,
    bias: Tensor | None = None,
    kappa: float | None = None,
    sum_bias: bool = False,
    activation: str = "none",
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    bias = _widen(bias)
    has_sum = output is not None or inner is not None or (bias is not None and kappa is not None)
    h, s, dbias = torch.empty_like(dz), torch.empty_like(factor) if has_sum else None, None
    if not has_sum and not sum_bias and _are_rows(dz, factor):
        _scale_rows(dz, factor, out=h)
        return h, None, None
    options: dict[str, Any] = {"activation": activation, "bias": bias, "kappa": kappa, "sum_bias": sum_bias}
    for h_, s_, factor_, *images in pieces(h, s, factor, dz, output, shortcut, inner):
        dz_, *others = map(_widen, images)
        wide, sums, part = elementwise.scale_cotangent(dz_, factor_, *others, **options)
        h_.copy_(wide)
        if has_sum:
            s_.copy_(sums)
        if part is not None:
            dbias = part if dbias is None else dbias + part
    return h, s, dbias


def correct_pointwise(dx: Tensor, x: Tensor, square: Tensor, extra: Tensor | None, rate: float = 1.0) -> None:
    """:func:`affnorm_zoo.ops.elementwise.correct_pointwise`."""
    _correct("correct_pointwise", rate, dx, x, square, extra)


def correct(dx: Tensor, x: Tensor, factor: Tensor, rate: float = 1.0) -> None:
    """:func:`affnorm_zoo.ops.elementwise.correct`."""
    _correct("correct", rate, dx, x, factor)


def _correct(name: str, rate: float, dx: Tensor, x: Tensor, factor: Tensor, *more: Tensor | None) -> None:
    if use_kernels(dx):
        getattr(_kernels(), name)(dx, x, rate * factor, *more)
    elif not use_pieces(dx):
        getattr(elementwise, name)(dx, x, factor, *more, rate)
    else:
        for dx_, x_, *maps in pieces(dx, x, factor, *more):
            wide = widen(dx_)
            getattr(elementwise, name)(wide, widen(x_), *maps, rate)
            dx_.copy_(wide)


def use_kernels(x: Tensor) -> bool:
    """Whether the Triton twin of a pass handles this tensor; not under the compiler, which fuses plain operations."""
    return x.is_cuda and not torch.compiler.is_compiling() and can_launch(x) and has_triton()


def _kernels() -> Any:
    from affnorm_zoo.kernels import elementwise as kernels  # Triton exists on Linux only

    return kernels


def use_pieces(x: Tensor) -> bool:
    """Whether a pass runs piece by piece."""
    return x.dtype in HALF and x.is_cpu and not torch.compiler.is_compiling()


def pieces(*tensors: Tensor | None) -> Iterator[tuple]:
    """The same pixels of images (N, C, H, W) and maps (N, groups, H, W): some images, or some rows of one.

    A missing tensor stays None; the first one is not missing, and decides how large a piece is.
    """
    first: Any = tensors[0]
    if first.numel() <= PIECE:
        yield tensors
        return
    image = first.numel() // first.shape[0]
    for images in _split(tensors, 0, max(PIECE // image, 1)):
        if image <= PIECE:
            yield images
        else:
            yield from _split(images, 2, max(PIECE * first.shape[2] // image, 1))


def _split(tensors: tuple, dim: int, size: int) -> Iterator[tuple]:
    return zip(*(repeat(None) if t is None else t.split(size, dim) for t in tensors), strict=False)


def _are_rows(x: Tensor, factor: Tensor) -> bool:
    return factor.shape[1] == 1 and x.is_contiguous(memory_format=torch.channels_last)


def _scale_rows(x: Tensor, factor: Tensor, out: Tensor) -> None:
    """x · factor, rounded once, in the one operation that reads half precision, multiplies in float32 and writes half.

    This is batch norm with mean 0 and variance 1, to which each pixel is a channel with a weight.
    """
    zeros, ones = factor.new_zeros(factor.numel()), factor.new_ones(factor.numel())
    rows, rows_out = (t.permute(0, 2, 3, 1).view(1, factor.numel(), x.shape[1]) for t in (x, out))
    unused = factor.new_empty(0)
    torch.native_batch_norm(
        rows, factor.reshape(-1), None, zeros, ones, False, 0.0, 0.0, out=(rows_out, unused, unused)
    )  # fmt: skip


def _widen(t: Any) -> Any:
    return None if t is None else widen(t)
