"""Attention whose mixed values have no affine divergence, with a gradient derived by hand in docs/derivations.md.

    a = softmax(q kᵀ/√d + mask),  G = X Xᵀ,  m_t = a_t G a_tᵀ,  r = 1/√(m + κ²),  z = c r (a v + κ b),  h = c r g

    s = Σ_s a ⟨h_t, v_s⟩ + κ ⟨h, b⟩        da = ⟨h_t, v_s⟩ - r² s (a G)        dx = -Σ_heads aᵀ (r² s a) X

norm_like has b behind the quotient and s without its term. Nothing of size L² is saved: the backward computes the
attention weights again, from q and k.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from affnorm_zoo.functional.mixed_attention import divide_mixed, mixed_map, mixed_square, uses_gram
from affnorm_zoo.functional.scale import widen
from affnorm_zoo.ops.dispatch import as_output, autocast_inputs, use_plain_gradient, use_plain_path
from affnorm_zoo.ops.gradients import differentiable_gradients, factor_square, output_factor
from affnorm_zoo.ops.recompute import attend_again, attention_weights


class Mixing(NamedTuple):
    """Which map the op computes: the scale, with κ = 0 for norm_like, and where the bias stands."""

    c: float
    kappa: float
    norm_like: bool


def mixed_attention(
    q: Tensor,
    k: Tensor,
    values: Tensor,
    x: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    c: float,
    kappa: float,
    norm_like: bool,
) -> Tensor:
    """The heads' outputs, of :func:`affnorm_zoo.functional.mixed_attention.mixed_map` with softmax weights.

    Args:
        q, k: (N, heads, L, d).
        values: (N, heads, L, d), W x_s without the bias.
        x: (N, L, in_features), what W multiplies.
        bias: (heads · d,) or None.
        mask: added to the logits, broadcast to (N, heads, L, L), or None.
        c, kappa, norm_like: as in ``mixed_map``.

    Returns:
        (N, heads, L, d).
    """
    if torch.jit.is_scripting():
        return mixed_map(attention_weights(q, k, mask), values, x, bias, c, kappa, norm_like)
    else:  # noqa: RET505 TorchScript skips code only in an else branch
        return _lean(q, k, values, x, bias, mask, Mixing(c, kappa, norm_like))


def _lean(
    q: Tensor, k: Tensor, values: Tensor, x: Tensor, bias: Tensor | None, mask: Tensor | None, what: Mixing
) -> Tensor:
    if use_plain_path() or (mask is not None and mask.requires_grad):
        return _plain(q, k, values, x, bias, mask, what)
    q, k, values, x, bias = autocast_inputs(q, k, values, x, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (q, k, values, x, bias)):
        if torch.compiler.is_compiling():
            # products of heads copy what is not contiguous; the compiler would save the copies beside the originals
            q, k, values = q.contiguous(), k.contiguous(), values.contiguous()
        return MixedAttentionFunction.apply(q, k, values, x, bias, mask, what)
    return _plain(q, k, values, x, bias, mask, what)


def _plain(q: Tensor, k: Tensor, values: Tensor, x: Tensor, bias: Tensor | None, mask: Any, what: Mixing) -> Tensor:
    return mixed_map(attention_weights(q, k, mask), values, x, bias, *what)


class MixedAttentionFunction(torch.autograd.Function):
    """Autograd of :func:`mixed_attention`; see the head of this file."""

    @staticmethod
    def forward(ctx: Any, q, k, values, x, bias, mask, what: Mixing) -> Tensor:
        attn = attention_weights(q, k, mask)
        factor = output_factor(mixed_square(attn, x), what.c, what.kappa)
        z = divide_mixed(attn @ values, factor, bias, what.kappa, what.norm_like)
        ctx.save_for_backward(q, k, values, x, bias, mask, factor)
        ctx.what = what
        return as_output(z)

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple:
        q, k, values, x, bias, mask, factor = ctx.saved_tensors
        what = ctx.what
        if use_plain_gradient(dz):
            plain = partial(_plain, mask=mask, what=what)
            inputs = (q, k, values, x, bias)
            return *differentiable_gradients(plain, inputs, ctx.needs_input_grad[:5], dz), None, None
        with torch.autocast(q.device.type, enabled=False):
            return *_gradients(q, k, values, x, bias, mask, factor, what, dz), None, None


def _gradients(q, k, values, x, bias, mask, factor, what: Mixing, dz: Tensor) -> tuple[Tensor | None, ...]:
    """dq, dk, dvalues, dx and dbias."""
    attn = attend_again(q, k, mask)  # (N, H, L, L)
    h = (dz * factor).to(dz.dtype)
    a = widen(attn)
    by_value = widen(h @ values.mT)  # ⟨h_t, v_s⟩
    s = (a * by_value).sum(-1, keepdim=True)
    dbias = None
    if bias is not None:
        if what.norm_like:
            dbias = widen(dz).sum((0, 2)).flatten().to(bias.dtype)
        else:
            s = s + what.kappa * (widen(h) * bias.view(q.shape[1], 1, -1)).sum(-1, keepdim=True)
            dbias = what.kappa * widen(h).sum((0, 2)).flatten().to(bias.dtype)
    weight = factor_square(factor, what.c, what.norm_like) * s / what.c**2  # r² s
    through_norm, dx = _norm_gradients(a, widen(x), weight)
    da = by_value - through_norm
    dlogits = (a * (da - (a * da).sum(-1, keepdim=True))).to(q.dtype) / math.sqrt(q.shape[-1])
    return dlogits @ k, dlogits.mT @ q, attn.mT @ h, dx.to(x.dtype), dbias


def _norm_gradients(a: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """r² s (a G), (N, H, L, L), and dx, (N, L, in_features); all operands in float32 or wider."""
    rows, weights = a.flatten(1, 2), weight.flatten(1, 2)  # (N, heads · L, ·)
    if uses_gram(x):
        through = weights * (rows @ (x @ x.mT))
        dx = -((rows.mT @ (rows * weights)) @ x)  # the sum over heads and t first, (N, L, L)
    else:
        weighted = weights * (rows @ x)  # r² s x̄
        through, dx = weighted @ x.mT, -(rows.mT @ weighted)
    return through.view_as(a), dx
