import torch.fx
from timm.layers import register_notrace_module
from torch import Tensor, nn

from affnorm_zoo.functional.l2_norm import l2_norm_map
from affnorm_zoo.layers._scaled import Scaled

torch.fx.wrap("l2_norm_map")


@register_notrace_module
class L2Norm(Scaled, nn.Module):
    """Parameter-free L2 norm over the last axis, (..., C) to (..., C).

    See :func:`affnorm_zoo.functional.l2_norm`. The constructor is timm's norm contract.

    Args:
        num_channels: size of the normalised axis.
        scale: ``"unit"`` (length 1), ``"rms"`` (RMS 1) or a pair (c, κ) whose κ is not used.
        device, dtype: accepted for the contract; there is nothing to place.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        scale: str | tuple[float, float] = "unit",
        device=None,  # noqa: ARG002
        dtype=None,  # noqa: ARG002
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        self._set_scale(scale, num_channels)

    def forward(self, x: Tensor) -> Tensor:
        return l2_norm_map(x, -1, self.c)

    def extra_repr(self) -> str:
        return f"{self.num_channels}, scale={self.scale!r}"


@register_notrace_module
class L2Norm2d(L2Norm):
    """Parameter-free L2 norm over the channels of images, (N, C, H, W) to (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return l2_norm_map(x, 1, self.c)
