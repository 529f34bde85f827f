import torch.fx
from timm.layers import register_notrace_module
from torch import Tensor

from affnorm_zoo.layers._linear import NormalizedLinear
from affnorm_zoo.ops.linear import norm_like
from affnorm_zoo.registry import PAPER, NormalizerSpec, register_normalizer

torch.fx.wrap("norm_like")  # a traced graph calls the op, and so keeps its gradient


@register_notrace_module
class NormLikeLinear(NormalizedLinear):
    """Linear layer on the L2-normalised input, (..., in_features) to (..., out_features).

        z = c x·Wᵀ / ‖x‖ + b

    See :func:`affnorm_zoo.functional.norm_like_linear`; the arguments are those of :class:`NormalizedLinear`, and the
    κ of a scale is not used.
    """

    norm_like = True

    def divide(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        return norm_like(input, weight, bias, self.c, self.input_activation)

    def inner_kappa(self) -> float | None:
        return None


register_normalizer(
    NormalizerSpec(
        name="normlike",
        summary="affine map of the L2-normalised vector, in every linear layer of a block",
        formula="c Wx / ‖x‖ + b",
        paper=PAPER,
        linear=NormLikeLinear,
        partner="patchnorm_l2",
    )
)
