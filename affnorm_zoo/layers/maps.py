"""Baselines of the form map times scale, one layer per map."""

import math

import torch
from torch import Tensor, nn

from affnorm_zoo.functional.maps import erf_map, scale_map, tanh_map, vector_softsign_map
from affnorm_zoo.registry import NormalizerSpec, register_normalizer

START = 0.5  # of α, as in both papers for everything but language models


class ScaledMap(nn.Module):
    """A map without parameters, times ``weight`` plus ``bias``, over the last axis: (..., C) to (..., C).

    The constructor is timm's norm contract.

    Args:
        num_channels: size of the last axis.
        affine: learn ``weight`` and ``bias``, (C,).
        eps: accepted for the contract; no map needs one.
        device, dtype: of the parameters.
    """

    channel_axis = -1
    __constants__ = ("channel_axis",)  # TorchScript sees no other attributes of a class

    def __init__(self, num_channels: int, *, affine: bool = True, eps=None, device=None, dtype=None) -> None:  # noqa: ARG002
        super().__init__()
        self.num_channels = num_channels
        for name in ("weight", "bias"):
            parameter = nn.Parameter(torch.empty(num_channels, device=device, dtype=dtype)) if affine else None
            self.register_parameter(name, parameter)
        for name in self.scalars():
            self.register_parameter(name, nn.Parameter(torch.empty(1, device=device, dtype=dtype)))
        self.reset_parameters()

    @staticmethod
    def scalars() -> dict[str, float]:
        """The map's own learned scalars and their initial values."""
        return {}

    def reset_parameters(self) -> None:
        """Initialise every parameter: weight 1, bias 0, and the map's scalars."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)
        for name, start in self.scalars().items():
            nn.init.constant_(getattr(self, name), start)

    def map(self, x: Tensor) -> Tensor:
        """φ(x)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return scale_map(self.map(x), self.weight, self.bias, dim=self.channel_axis)

    def extra_repr(self) -> str:
        return f"{self.num_channels}, affine={self.weight is not None}"


class DyT(ScaledMap):
    """Dynamic tanh, γ tanh(α x) + β, (..., C) to (..., C). Zhu et al. 2025, https://arxiv.org/abs/2503.10622."""

    @staticmethod
    def scalars() -> dict[str, float]:
        return {"alpha": START}

    def map(self, x: Tensor) -> Tensor:
        return tanh_map(x, self.alpha)


class Derf(ScaledMap):
    """Dynamic erf, γ erf(α x + s) + β, (..., C) to (..., C). Chen et al. 2025, https://arxiv.org/abs/2512.10938."""

    @staticmethod
    def scalars() -> dict[str, float]:
        return {"alpha": START, "shift": 0.0}

    def map(self, x: Tensor) -> Tensor:
        return erf_map(x, self.alpha, self.shift)


class Softsign(ScaledMap):
    """Vector softsign at κ = √C, γ √C x / √(‖x‖² + C) + β, (..., C) to (..., C).

    It is the map that affine_like applies to its input, as a separate norm.
    See :func:`affnorm_zoo.functional.vector_softsign`.
    """

    def map(self, x: Tensor) -> Tensor:
        root = math.sqrt(self.num_channels)
        return root * vector_softsign_map(x, root, self.channel_axis)


class Softsign2d(Softsign):
    """Vector softsign over the channels of images, (N, C, H, W) to (N, C, H, W)."""

    channel_axis = -3


register_normalizer(
    NormalizerSpec(
        name="softsign",
        summary="vector softsign over the channels, the map inside affinelike as a norm of its own",
        formula="γ √n x / √(‖x‖² + n) + β",
        order=100,
        norm=Softsign,
        norm2d=Softsign2d,
    )
)
register_normalizer(
    NormalizerSpec(
        name="dyt",
        summary="dynamic tanh, entry by entry",
        formula="γ tanh(α x) + β",
        order=100,
        norm=DyT,
    )
)
register_normalizer(
    NormalizerSpec(
        name="derf",
        summary="dynamic erf, entry by entry",
        formula="γ erf(α x + s) + β",
        order=100,
        norm=Derf,
    )
)
