import torch.fx
from timm.layers import register_notrace_module
from torch import Tensor

from affnorm_zoo.layers._linear import NormalizedLinear
from affnorm_zoo.ops.linear import affine_like
from affnorm_zoo.registry import PAPER, NormalizerSpec, register_normalizer

torch.fx.wrap("affine_like")  # a traced graph calls the op, and so keeps its gradient


@register_notrace_module
class AffineLikeLinear(NormalizedLinear):
    """Linear layer without affine divergence, (..., in_features) to (..., out_features).

        z = c (x·Wᵀ + κ b) / √(‖x‖² + κ²)

    See :func:`affnorm_zoo.functional.affine_like_linear`; the arguments are those of :class:`NormalizedLinear`.
    """

    norm_like = False

    def divide(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        return affine_like(input, weight, bias, self.c, self.kappa, self.input_activation)

    def inner_kappa(self) -> float | None:
        return None if self.bias is None else self.kappa


register_normalizer(
    NormalizerSpec(
        name="affinelike",
        summary="affine map of the normalised augmented vector [x; κ], in every linear layer of a block",
        formula="c (Wx + κ b) / √(‖x‖² + κ²)",
        paper=PAPER,
        linear=AffineLikeLinear,
        partner="patchnorm",
    )
)
