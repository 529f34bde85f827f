import torch
from torch import nn

from affnorm_zoo.layers._scaled import Scaled


class NormalizedLinear(Scaled, nn.Linear):
    """What the divergence-free linear layers share: their arguments and their initialisation.

    Its state dict is that of :class:`torch.nn.Linear`.

    Args:
        in_features, out_features, bias, device, dtype: as in :class:`torch.nn.Linear`.
        scale: ``"unit"``, ``"rms"``, ``"rms4"`` or a pair (c, κ).
        input_activation: ``"none"`` or ``"gelu"`` (the exact one), applied to the input without saving its output.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        scale: str | tuple[float, float] = "unit",
        input_activation: str = "none",
        device=None,
        dtype=None,
    ) -> None:
        if input_activation not in ("none", "gelu"):
            raise ValueError(f"input_activation must be 'none' or 'gelu', got {input_activation!r}")
        self.input_activation = input_activation
        self._set_scale(scale, in_features)  # before the parent's constructor, which calls reset_parameters
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the weight from N(0, 1/c²), so that outputs have an RMS of 1 or less, and set the bias to zero."""
        nn.init.normal_(self.weight, std=1 / self.c)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def damp(self, factor: float) -> None:
        """Multiply the response, bias aside, by ``factor``."""
        self.weight.mul_(factor)

    def extra_repr(self) -> str:
        activation = "" if self.input_activation == "none" else f", input_activation={self.input_activation}"
        return f"{super().extra_repr()}, scale={self.scale!r}{activation}"
