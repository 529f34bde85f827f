import torch
from torch import Tensor

from affnorm_zoo.functional.scale import widen

EPS = 1e-6  # added to the variance by our layers


def standardize_weight(weight: Tensor, gain: Tensor | None = None, *, c: float, eps: float = 1e-6) -> Tensor:
    """Give every output channel's kernel mean 0 and variance 1/c², then multiply by its gain.

        Ŵ = gain (W - mean(W)) / (c √(var(W) + eps))

    Args:
        weight: (C_out, ...); mean and biased variance are over all axes except the first, in float32 or wider.
        gain: (C_out,) or None for no gain.
        c: output scale of the layer that uses Ŵ; positive. With c = √fan_in this is scaled weight standardisation.
        eps: added to the variance, in squared units of ``weight``; positive.

    Returns:
        The shape and dtype of ``weight``.

    Raises:
        ValueError: ``gain`` is not (C_out,).

    Source:
        Qiao et al. 2019, https://arxiv.org/abs/1903.10520; Brock et al. 2021, https://arxiv.org/abs/2101.08692, eq. 1.
    """
    if gain is not None and gain.shape != weight.shape[:1]:
        raise ValueError(f"gain must have shape ({weight.shape[0]},), got {tuple(gain.shape)}")
    return standardize_weight_map(weight, gain, c, eps)


def standardize_weight_map(weight: Tensor, gain: Tensor | None, c: float, eps: float) -> Tensor:
    """The formula of :func:`standardize_weight` without its checks; TorchScript compiles this function."""
    wide = widen(weight).flatten(1)
    centered = wide - wide.mean(dim=1, keepdim=True)
    var = centered.square().mean(dim=1, keepdim=True)  # (C_out, 1)
    standardized = (centered * (torch.rsqrt(var + eps) / c)).reshape(weight.shape)
    if gain is not None:
        standardized = standardized * gain.reshape(-1, 1, 1, 1)
    return standardized.to(weight.dtype)


def effective_weight_map(weight: Tensor, gain: Tensor | None, c: float, standardized: bool) -> Tensor:
    """The kernel that a convolution uses: W, standardised and multiplied by the gain where the layer has these."""
    if standardized:
        return standardize_weight_map(weight, gain, c, 1e-6)  # EPS; TorchScript cannot read the global
    if gain is not None:
        return weight * gain.reshape(-1, 1, 1, 1)
    return weight
