from torch import Tensor
from torch.nn import functional as F

from affnorm_zoo.functional.scale import inverse_norm, resolve_scale, widen


def affine_like_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, scale: str | tuple[float, float] = "unit"
) -> Tensor:
    """Affine map of the normalised augmented vector: no divergence, no scale invariance.

        z = c (x·Wᵀ + κ b) / √(‖x‖² + κ²)

    One gradient-descent step with learning rate η on (W, b) moves z by exactly -η c² g, for every sample.

    Args:
        x: (..., in_features), any floating dtype; ‖x‖² is summed in float32 or wider.
        weight: (out_features, in_features).
        bias: (out_features,) or None.
        scale: ``"unit"`` (c = κ = 1), ``"rms"`` (c = κ = √in_features), ``"rms4"`` (c = √in_features, κ = 4c)
            or a pair (c, κ).

    Returns:
        (..., out_features) in the dtype of the matrix product. At x = 0 it is c b, without any eps.

    Raises:
        ValueError: the shapes do not match, or ``scale`` is none of the above.

    Source:
        Bird 2025, https://arxiv.org/abs/2512.22247, the second solution ("affine-like"): W̃ applied to the normalised
        [x; 1]. ``"unit"`` is the paper's form.

    Note:
        c and κ are our additions. κ → 0 gives norm_like without bias. c = κ → ∞ gives the plain affine map Wx + κ b,
        whose bias is in units of 1/κ.
    """
    check_linear_shapes(x, weight, bias)
    c, kappa = resolve_scale(scale, weight.shape[1])
    return affine_like_map(x, weight, bias, c, kappa)


def affine_like_map(x: Tensor, weight: Tensor, bias: Tensor | None, c: float, kappa: float) -> Tensor:
    """The formula of :func:`affine_like_linear` with ``scale`` resolved; TorchScript compiles this function."""
    y = F.linear(x, weight, None if bias is None else kappa * bias)
    square_sum = widen(x).square().sum(dim=-1, keepdim=True)  # (..., 1)
    return (y * (c * inverse_norm(square_sum, kappa))).to(y.dtype)


def check_linear_shapes(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise ValueError unless the shapes x (..., in), weight (out, in) and bias (out,) match."""
    if weight.dim() != 2:
        raise ValueError(f"weight must have shape (out_features, in_features), got {tuple(weight.shape)}")
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x must have shape (..., {weight.shape[1]}) to fit the weight, got {tuple(x.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
