from torch import Tensor
from torch.nn import functional as F

from affnorm_zoo.functional.affine_like import check_linear_shapes
from affnorm_zoo.functional.scale import inverse_norm, resolve_scale, widen


def norm_like_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, scale: str | tuple[float, float] = "unit"
) -> Tensor:
    """Affine map of the L2-normalised vector: no divergence, invariant to the length of x.

        z = c x·Wᵀ / ‖x‖ + b

    One gradient-descent step with learning rate η on (W, b) moves z by exactly -η (c² + 1) g, for every sample.
    Without a bias the factor is c².

    Args:
        x: (..., in_features), any floating dtype; ‖x‖² is summed in float32 or wider.
        weight: (out_features, in_features).
        bias: (out_features,) or None.
        scale: ``"unit"`` (c = 1), ``"rms"`` (c = √in_features) or a pair (c, κ); κ is ignored.

    Returns:
        (..., out_features) in the dtype of the matrix product. At x = 0 it is b, and the gradient of x and W is 0.

    Raises:
        ValueError: the shapes do not match, or ``scale`` is none of the above.

    Source:
        Bird 2025, https://arxiv.org/abs/2512.22247, the first solution ("norm-like"). ``"unit"`` is the paper's form.
    """
    check_linear_shapes(x, weight, bias)
    c, _ = resolve_scale(scale, weight.shape[1])
    return norm_like_map(x, weight, bias, c)


def norm_like_map(x: Tensor, weight: Tensor, bias: Tensor | None, c: float) -> Tensor:
    """The formula of :func:`norm_like_linear` with ``scale`` resolved; TorchScript compiles this function."""
    y = F.linear(x, weight)
    square_sum = widen(x).square().sum(dim=-1, keepdim=True)  # (..., 1)
    z = y * (c * inverse_norm(square_sum, 0.0))
    if bias is not None:
        z = z + bias
    return z.to(y.dtype)
