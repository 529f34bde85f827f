import torch
from torch import Tensor

from affnorm_zoo.functional.affine_like import check_linear_shapes
from affnorm_zoo.functional.scale import inverse_norm, resolve_scale, widen


def affine_like_mixed(
    x: Tensor,
    attn: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: str | tuple[float, float] = "unit",
) -> Tensor:
    """The values of an attention without affine divergence: affine_like on each head's mixed tokens.

        x̄_t = Σ_s a_ts x_s,        z_t = c (W x̄_t + κ b) / √(‖x̄_t‖² + κ²)

    With the attention weights fixed, one gradient-descent step with learning rate η on (W, b) moves z_t by exactly
    -η c² g, for every token and head. No normalisation of the tokens x_s does that, since mixing shortens them.

    Args:
        x: (N, L, in_features), any floating dtype; ‖x̄‖² is summed in float32 or wider.
        attn: (N, heads, L, L), a_ts with queries t before keys s. Rows need not sum to 1, as after dropout.
        weight: (heads · d, in_features), the heads' value rows.
        bias: (heads · d,) or None.
        scale: as in :func:`affine_like_linear`.

    Returns:
        (N, heads, L, d).

    Raises:
        ValueError: the shapes do not match, or ``scale`` is unknown.

    Note:
        Our derivation: the paper's formulas for attention are not public.
    """
    c, kappa = resolve_scale(scale, weight.shape[-1])
    values = _values(x, attn, weight, bias)
    return mixed_map(attn, values, x, bias, c, kappa, norm_like=False)


def norm_like_mixed(
    x: Tensor,
    attn: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: str | tuple[float, float] = "unit",
) -> Tensor:
    """norm_like on each head's mixed tokens: z_t = c W x̄_t / ‖x̄_t‖ + b, with a factor of c² + 1.

    Arguments, result and errors are those of :func:`affine_like_mixed`; κ is not used.
    """
    c, _ = resolve_scale(scale, weight.shape[-1])
    values = _values(x, attn, weight, bias)
    return mixed_map(attn, values, x, bias, c, 0.0, norm_like=True)


def _values(x: Tensor, attn: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """W x_s per head, (N, heads, L, d)."""
    check_linear_shapes(x, weight, bias)
    if x.dim() != 3 or attn.dim() != 4 or (attn.shape[0], *attn.shape[2:]) != (len(x), x.shape[1], x.shape[1]):
        raise ValueError(
            f"x must have shape (N, L, in_features) and attn (N, heads, L, L), got {tuple(x.shape)} and "
            f"{tuple(attn.shape)}"
        )
    if weight.shape[0] % attn.shape[1]:
        raise ValueError(f"weight must have a multiple of the {attn.shape[1]} heads of rows, got {weight.shape[0]}")
    return torch.nn.functional.linear(x, weight).unflatten(-1, (attn.shape[1], -1)).transpose(1, 2)


def mixed_map(
    attn: Tensor, values: Tensor, x: Tensor, bias: Tensor | None, c: float, kappa: float, norm_like: bool
) -> Tensor:
    """The formula of :func:`affine_like_mixed` or :func:`norm_like_mixed`.

    Args:
        attn: (N, heads, L, L).
        values: (N, heads, L, d), W x_s without the bias.
        x: (N, L, in_features).
        bias: (heads · d,) or None.
        c, kappa: the scale, resolved; κ is 0 for norm_like.
        norm_like: add the bias behind the quotient.
    """
    return divide_mixed(attn @ values, c * inverse_norm(mixed_square(attn, x), kappa), bias, kappa, norm_like)


def divide_mixed(y: Tensor, factor: Tensor, bias: Tensor | None, kappa: float, norm_like: bool) -> Tensor:
    """Mixed values (N, heads, L, d) times c r, (N, heads, L, 1), with the bias where it belongs."""
    shift = None if bias is None else bias.view(y.shape[1], 1, -1)
    if norm_like:
        z = y * factor
        return (z if shift is None else z + shift).to(y.dtype)
    return ((y if shift is None else y + kappa * shift) * factor).to(y.dtype)


def mixed_square(attn: Tensor, x: Tensor) -> Tensor:
    """‖Σ_s a_ts x_s‖² per head and token, (N, heads, L, 1), in float32 or wider.

    With no more tokens than features it is a_t G a_tᵀ, G = X Xᵀ: no head mixes the tokens themselves. The rounding of
    that form is relative to the longest token, so a mix that cancels may come out below 0; it then counts as 0.
    """
    a, x = widen(attn), widen(x)
    if torch.jit.is_scripting():
        return _square(a, x)
    with torch.autocast(x.device.type, enabled=False):
        return _square(a, x)


def _square(a: Tensor, x: Tensor) -> Tensor:
    rows = a.flatten(1, 2)  # (N, heads · L, L): one product per image, which all heads share
    if uses_gram(x):
        square = ((rows @ (x @ x.mT)) * rows).sum(dim=-1).clamp_min(0.0)
    else:
        square = (rows @ x).square().sum(dim=-1)
    return square.unflatten(-1, (a.shape[1], a.shape[2])).unsqueeze(-1)


def uses_gram(x: Tensor) -> bool:
    """Whether the Gram matrix of x, (..., L, in_features), is cheaper for every head than the mixed tokens are."""
    return x.shape[-2] <= x.shape[-1]
