import torch
from torch import Tensor, nn

from affnorm_zoo.layers._bound import BoundLayer, draw_normal


class NormalizedLinear(BoundLayer):
    """What the divergence-free linear layers share: their arguments and their initialisation.

    Its state dict is that of :class:`torch.nn.Linear`.

    Args:
        in_features, out_features, bias, device, dtype: as in :class:`torch.nn.Linear`.
        scale: ``"unit"``, ``"rms"``, ``"rms4"`` or a pair (c, κ).
        input_activation: ``"none"`` or ``"gelu"`` (the exact one), applied to the input without saving its output.
    """

    channel_axis = -1
    like = nn.Linear
    input_activations = ("gelu",)
    norm_like: bool  # whether the bias is added behind the quotient

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
        if input_activation not in ("none", *self.input_activations):
            known = " or ".join(map(repr, ("none", *self.input_activations)))
            raise ValueError(f"input_activation must be {known}, got {input_activation!r}")
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.input_activation = input_activation
        self.undivided = 0  # the last outputs that stay W x, without a bias: an attention divides them after mixing
        self._set_scale(scale, in_features)
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        new_bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", new_bias)
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 the name is nn.Linear's
        if self.undivided == 0:
            return self.divide(input, self.weight, self.bias)
        rows = self.out_features - self.undivided
        bias = self.bias
        kept = None if bias is None else bias[:rows]  # type: ignore[index]
        divided = self.divide(input, self.weight[:rows], kept)
        return torch.cat([divided, nn.functional.linear(input, self.weight[rows:])], dim=-1)

    def divide(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        """The layer's map with some rows of its parameters."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Draw the weight from N(0, 1/c²), so that outputs have an RMS of 1 or less, and set the bias to zero."""
        self.check_writable()
        draw_normal(self.weight, std=1 / self.c)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def damp(self, factor: float) -> None:
        """Multiply the response, bias aside, by ``factor``."""
        self.check_writable()
        self.weight.mul_(factor)

    def extra_repr(self) -> str:
        activation = "" if self.input_activation == "none" else f", input_activation={self.input_activation}"
        size = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        undivided = f", undivided={self.undivided}" if self.undivided else ""
        return f"{size}, scale={self.scale!r}{activation}{undivided}"
