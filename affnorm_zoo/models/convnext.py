"""ConvNeXts with every linear normaliser, whose partner serves the convolutions: ``convnext_tiny_affinelike``."""

from functools import partial
from typing import Any

from timm.layers.grn import GlobalResponseNorm
from timm.models import named_apply
from timm.models.convnext import ConvNeXt, ConvNeXtBlock, _init_weights
from torch import nn

from affnorm_zoo.models._normalized import Normalized, model_cfgs, register_models


class NormalizedConvNeXt(Normalized, ConvNeXt):
    """timm's ConvNeXt with a divergence-free normaliser in place of its norms; see :meth:`Normalized.build`.

    In the linear layers it is the normaliser itself, in convolutions its partner, the same map per patch. The small
    networks have convolutions only, as timm builds them; ``conv_mlp=False`` gives them linear layers.
    """

    ls_init_value: float | None

    @classmethod
    def build(cls, architecture: str, **kwargs: Any) -> "NormalizedConvNeXt":
        """As for every network; it remembers how its branches' scales start, which timm's blocks do not."""
        model = super().build(architecture, **kwargs)
        model.ls_init_value = kwargs.get("ls_init_value", 1e-6)  # timm's, where a network has such scales
        return model

    def init_plain_weights(self) -> None:
        """Initialise timm's layers by timm's rule."""
        named_apply(partial(_init_weights, head_init_scale=1.0), self)
        for module in self.modules():
            if isinstance(module, ConvNeXtBlock) and module.gamma is not None:
                nn.init.constant_(module.gamma, self.ls_init_value)
            elif isinstance(module, GlobalResponseNorm):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)


ARCHITECTURES = (
    "convnext_atto", "convnext_femto", "convnext_pico", "convnext_nano", "convnext_tiny", "convnext_small",
    "convnext_base", "convnextv2_atto", "convnextv2_nano", "convnextv2_tiny",
)  # fmt: skip
KIND = "linear"  # the layers that a normaliser must be made for

__all__ = ["NormalizedConvNeXt"]
default_cfgs = model_cfgs(ARCHITECTURES, KIND)
register_models(__name__, NormalizedConvNeXt, ARCHITECTURES, KIND, out_indices=(0, 1, 2, 3))
