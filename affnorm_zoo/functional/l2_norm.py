from torch import Tensor

from affnorm_zoo.functional.scale import inverse_norm, resolve_scale, widen


def l2_norm(x: Tensor, *, dim: int = -1, scale: str | tuple[float, float] = "unit") -> Tensor:
    """Divide by the Euclidean length over one axis, without parameters.

        y = c x / ‖x‖

    Args:
        x: any shape, any floating dtype; ‖x‖² is summed over ``dim`` in float32 or wider.
        dim: the axis of the channels.
        scale: ``"unit"`` (c = 1), ``"rms"`` (c = √channels) or a pair (c, κ); κ is ignored.

    Returns:
        The shape and dtype of ``x``. A zero vector stays zero and has a zero gradient.

    Raises:
        ValueError: ``scale`` is none of the above.

    Source:
        Bird 2025, https://arxiv.org/abs/2512.22247: the normaliser inside the norm-like solution.
    """
    c, _ = resolve_scale(scale, x.shape[dim])
    return l2_norm_map(x, dim, c)


def l2_norm_map(x: Tensor, dim: int, c: float) -> Tensor:
    """The formula of :func:`l2_norm` with ``scale`` resolved; TorchScript compiles this function."""
    x_wide = widen(x)
    square_sum = x_wide.square().sum(dim=dim, keepdim=True)
    return (x_wide * (c * inverse_norm(square_sum, 0.0))).to(x.dtype)
