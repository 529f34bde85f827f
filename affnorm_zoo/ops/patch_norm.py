"""PatchNorm with a gradient derived by hand. It saves the input and one number per position, not the output.

With r = 1/√(‖x_p‖² + κ²), z = c r (W∗x + κ b) and h = c r g for a cotangent g before the activation:

    dW, dx₀ = the convolution's own gradients for h        db = κ Σ h   (norm_like: Σ g)
    dx = dx₀ - x ⊙ box_sumᵀ(r² s),                          s_p = Σ_channels h_p (W∗x + κ b)_p

Two cases give s without W∗x. For a 1x1 kernel without an activation it follows from x and dx₀. With ReLU, leaky ReLU
or ReLU6 it follows from the activation's output, which the next layer keeps anyway: where g is not zero, the output is
z or a known multiple of it. Otherwise W∗x is kept, or recomputed.

With a shortcut the op is relu(z + shortcut), the end of a residual block. Where its output is not zero, z is the output
minus the shortcut, and elsewhere g is zero: s = Σ g (output - shortcut). Other layers keep both tensors, except for the
output of a downsampling layer; to save that costs less than to convolve again.
:meth:`PatchMap.gives_z` says when; otherwise W∗x is recomputed.

SiLU, hard swish and GELU always need W∗x. They fall before they rise, so one output belongs to two inputs. A bit per
element could tell which one is meant, but near the minimum the derivative changes like the root of the change in the
output: rounding SiLU's output to bfloat16 would change its derivative by up to 0.02. So z comes from W∗x and the factor
again, h = c r act'(z) dz, and s is as above. The output is not saved.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from affnorm_zoo.functional.activation import FROM_OUTPUT
from affnorm_zoo.functional.patch_norm import patch_norm_map
from affnorm_zoo.functional.weight_standardization import effective_weight_map
from affnorm_zoo.ops import passes, windows
from affnorm_zoo.ops.activation import activation_backward
from affnorm_zoo.ops.dispatch import (
    as_output,
    autocast_dtype,
    autocast_inputs,
    overwritable,
    use_plain_gradient,
    use_plain_path,
)
from affnorm_zoo.ops.gradients import differentiable_gradients, factor_square, output_factor
from affnorm_zoo.ops.patch_map import IntPair, PatchMap
from affnorm_zoo.ops.recompute import convolve_again, standardize_again
from affnorm_zoo.ops.weight_standardization import Kernel, gained_kernel, kernel_gradients, standardized_kernel

aten = torch.ops.aten


def patch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntPair,
    padding: IntPair,
    dilation: IntPair,
    groups: int,
    c: float,
    kappa: float,
    norm_like: bool,
    activation: str,
    recompute: bool = False,
    gain: Tensor | None = None,
    standardized: bool = False,
    shortcut: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """The lean form of :func:`affnorm_zoo.functional.patch_norm.patch_norm_map`, with the same values.

    Args:
        recompute: recompute W∗x in the backward instead of keeping it, where the gradient needs it.
        gain: (C_out,), a factor on each output channel's kernel, or None.
        standardized: standardise the kernel first. The backward computes the effective kernel again.
        shortcut: (N, C_out, H_out, W_out). The result is then relu(z + shortcut), in the dtype of z; ``activation``
            must be ``"none"``.
        shift: (C_in,), subtracted from x first; it gets no gradient. The difference is not saved but taken again.
        others: as in the reference, resolved; x may also be one image, (C_in, H, W).

    Note:
        The gradient can itself be differentiated. This goes through the reference, and saves what the reference saves.
    """
    batch = x if x.dim() == 4 else x.unsqueeze(0)
    if torch.jit.is_scripting():
        batch = shifted(batch, shift)
        kernel = effective_weight_map(weight, gain, c, standardized)
        z = patch_norm_map(batch, kernel, bias, stride, padding, dilation, groups, c, kappa, norm_like, activation)
        z = z if shortcut is None else F.relu(z + shortcut).to(z.dtype)
    else:
        what = PatchMap(stride, padding, dilation, groups, c, kappa, norm_like, activation)
        z = _lean(batch, weight, bias, gain, shortcut, shift, what, standardized, recompute)
    return z if x.dim() == 4 else z.squeeze(0)


def shifted(x: Tensor, shift: Tensor | None) -> Tensor:
    """x - shift, per channel; x itself without a shift."""
    return x if shift is None else x - shift.to(x.dtype).view(-1, 1, 1)


def _lean(
    x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, shortcut: Tensor | None, shift: Tensor | None,
    what: PatchMap, standardized: bool, recompute: bool,
) -> Tensor:  # fmt: skip
    if use_plain_path():
        return _plain(x, weight, bias, gain, shortcut, shift, what, standardized)
    if gain is None and not standardized:
        x, weight, bias = autocast_inputs(x, weight, bias)
        dtype = weight.dtype
    else:  # the weight is saved as it is; its kernel is rounded
        dtype = autocast_dtype(x) or weight.dtype
        x, bias = autocast_inputs(x, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, gain)):
        gives_z = shortcut is not None and what.gives_z(weight, dtype, shortcut)
        keep = what.needs_inner(weight) and not recompute and not gives_z
        return PatchNormFunction.apply(x, weight, bias, gain, shortcut, shift, what, standardized, dtype, keep, gives_z)
    kernel = _kernel(weight, gain, what, standardized, dtype).value
    return _forward(shifted(x, shift), kernel, bias, shortcut, what, keep=False)[0]


def _plain(
    x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, shortcut: Tensor | None, shift: Tensor | None,
    what: PatchMap, standardized: bool,
) -> Tensor:  # fmt: skip
    z = patch_norm_map(shifted(x, shift), effective_weight_map(weight, gain, what.c, standardized), bias, *what)
    return z if shortcut is None else F.relu(z + shortcut).to(z.dtype)


def _kernel(
    weight: Tensor, gain: Tensor | None, what: PatchMap, standardized: bool, dtype: torch.dtype, again: bool = False
) -> Kernel:
    """The kernel that the convolution sees; ``again`` in the backward."""
    if standardized:
        if again and torch.compiler.is_compiling():
            return Kernel(*standardize_again(weight, gain, what.c, dtype))
        return standardized_kernel(weight, gain, what.c, dtype)
    return Kernel(weight) if gain is None else gained_kernel(weight, gain, dtype)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None, what: PatchMap, keep: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The output, the factor c r per position, and the convolution's own output if it must be kept.

    Passes around the library's convolution.
    """
    kernel_size = (weight.shape[2], weight.shape[3])
    squares = passes.square_sum(x, what.groups)
    squares = windows.window_sum(squares, kernel_size, what.stride, what.padding, what.dilation)
    factor = output_factor(squares, what.c, 0.0 if what.norm_like else what.kappa)
    in_library = passes.bias_in_library(x, what.inner_kappa())
    y = F.conv2d(x, weight, what.kappa * bias if in_library and bias is not None else None, *what.geometry())
    y = overwritable(y)
    own_bias = None if in_library else bias
    z = passes.scale_output(y, factor, own_bias, what.inner_kappa(), what.activation, keep, shortcut)
    return z, factor, y if keep else None


class PatchNormFunction(torch.autograd.Function):
    """Autograd of :func:`patch_norm`; see the head of this file."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, shortcut: Tensor | None,
        shift: Tensor | None, what: PatchMap, standardized: bool, dtype: torch.dtype, keep: bool, gives_z: bool,
    ) -> Tensor:  # fmt: skip
        kernel = _kernel(weight, gain, what, standardized, dtype).value
        z, factor, y = _forward(shifted(x, shift), kernel, bias, shortcut, what, keep)
        out = None if shortcut is None else z
        kept = z if what.activation in FROM_OUTPUT else y
        ctx.save_for_backward(x, weight, bias, gain, factor, kept, out, shortcut if gives_z else None, shift)
        ctx.what, ctx.standardized, ctx.dtype = what, standardized, dtype
        return as_output(z)

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple:
        x, weight, bias, gain, factor, kept, out, shortcut, shift = ctx.saved_tensors
        what = ctx.what
        nothing = (None,) * 6
        if use_plain_gradient(dz):
            g = dz if out is None else dz * (out > 0)
            plain = partial(_plain, shortcut=None, shift=shift, what=what, standardized=ctx.standardized)
            gradients = differentiable_gradients(plain, (x, weight, bias, gain), ctx.needs_input_grad[:4], g)
            return *gradients, g if ctx.needs_input_grad[4] else None, *nothing
        x = shifted(x, shift)
        stride, padding, dilation, groups = what.geometry()
        needs_x, needs_weight, needs_bias, needs_gain, needs_shortcut = ctx.needs_input_grad[:5]
        needs_kernel = needs_weight or needs_gain
        kernel = _kernel(weight, gain, what, ctx.standardized, ctx.dtype, again=True)

        in_library = passes.bias_in_library(x, what.inner_kappa())
        given: dict[str, Any] = {"kappa": what.inner_kappa(), "sum_bias": needs_bias and not in_library}
        from_input = False  # whether s needs dx₀
        dshortcut = None
        if out is not None:
            dz = activation_backward(dz, out, "relu")
            dshortcut = dz if needs_shortcut else None
        if shortcut is not None and needs_x:
            given |= {"output": out, "shortcut": shortcut, "bias": bias if what.norm_like else None}
        elif what.activation in FROM_OUTPUT:
            given |= {"activation": what.activation, "output": kept, "bias": bias if what.norm_like else None}
        elif what.activation == "none" and not needs_x:
            pass  # s only corrects dx
        elif what.needs_inner(weight):
            library_bias = what.kappa * bias if in_library and bias is not None else None
            given["inner"] = convolve_again(x, kernel.value, library_bias, *what.geometry()) if kept is None else kept
            given |= {"activation": what.activation, "bias": None if in_library else bias}
        else:
            from_input = True
            given["bias"] = None if what.norm_like else bias
        h, s, dbias = passes.scale_cotangent(dz, factor, **given)
        # for a 1x1 kernel the library takes longer than a sum
        library_sums = in_library and (torch.compiler.is_compiling() or not what.is_pointwise(weight))
        dx, dkernel, sums = aten.convolution_backward.default(
            h, x, kernel.value, [weight.shape[0]], stride, padding, dilation, False, [0, 0], groups,
            [needs_x, needs_kernel, needs_bias and library_sums],
        )  # fmt: skip
        if needs_bias and in_library:
            dbias = what.kappa * (sums if library_sums else h.sum((0, 2, 3)))
        elif needs_bias:
            dbias = dbias.to(bias.dtype)
        if needs_x:
            square, rate = factor_square(factor, what.c, what.norm_like), 1 / what.c**2
            if from_input:
                dx_read, x_read = (windows.every(t, stride) for t in (dx, x))
                passes.correct_pointwise(dx_read, x_read, square, s, rate)
            else:
                size, kernel_size = (x.shape[2], x.shape[3]), (weight.shape[2], weight.shape[3])
                v = windows.window_sum_transpose(square * s, size, kernel_size, stride, padding, dilation)
                passes.correct(dx, x, v, rate)
        dweight, dgain = dkernel, None
        if needs_kernel and kernel.value is not weight:
            dweight, dgain = kernel_gradients(dkernel, kernel, weight, gain, what.c)
        return dx, dweight, dbias, dgain, dshortcut, *nothing
