import torch
import torch.fx
from timm.layers import register_notrace_module
from torch import Tensor, nn

from affnorm_zoo.functional.scale import resolve_scale
from affnorm_zoo.ops.linear import affine_like
from affnorm_zoo.registry import PAPER, NormalizerSpec, register_normalizer

torch.fx.wrap("affine_like")  # a traced graph calls the op, and so keeps its gradient


@register_notrace_module
class AffineLikeLinear(nn.Linear):
    """Linear layer without affine divergence, (..., in_features) to (..., out_features).

        z = c (x·Wᵀ + κ b) / √(‖x‖² + κ²)

    See :func:`affnorm_zoo.functional.affine_like_linear`. Its state dict is that of :class:`torch.nn.Linear`. The
    weight starts with standard deviation 1/c, so that no output has an RMS above 1, whatever the input's.

    Args:
        in_features, out_features, bias, device, dtype: as in :class:`torch.nn.Linear`.
        scale: ``"unit"``, ``"rms"`` or a pair (c, κ).
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
        self.scale = scale  # before the parent's constructor, which calls reset_parameters
        self.c, self.kappa = resolve_scale(scale, in_features)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the weight from N(0, 1/c²) and set the bias to zero."""
        nn.init.normal_(self.weight, std=1 / self.c)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def damp(self, factor: float) -> None:
        """Multiply the response, bias aside, by ``factor``."""
        self.weight.mul_(factor)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 the name is nn.Linear's
        return affine_like(input, self.weight, self.bias, self.c, self.kappa, self.input_activation)

    def extra_repr(self) -> str:
        activation = "" if self.input_activation == "none" else f", input_activation={self.input_activation}"
        return f"{super().extra_repr()}, scale={self.scale!r}{activation}"


register_normalizer(
    NormalizerSpec(
        name="affinelike",
        summary="affine map of the normalised augmented vector [x; κ], in every linear layer of a block",
        formula="c (Wx + κ b) / √(‖x‖² + κ²)",
        paper=PAPER,
        linear=AffineLikeLinear,
    )
)
