"""DeiT and DeiT-III with every linear normaliser: ``timm.create_model("deit3_small_patch16_224_affinelike")``."""

from functools import partial

from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from affnorm_zoo.models._normalized import Normalized, model_cfgs, register_models


class NormalizedDeit(Normalized, VisionTransformer):
    """timm's DeiT with a divergence-free normaliser in place of its norms; see :meth:`Normalized.build`."""


class NormalizedDistilledDeit(Normalized, VisionTransformerDistilled):
    """timm's DeiT with a distillation token; see :meth:`Normalized.build`."""


PLAIN = (
    "deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224",
    "deit3_small_patch16_224", "deit3_medium_patch16_224", "deit3_base_patch16_224",
)  # fmt: skip
DISTILLED = ("deit_tiny_distilled_patch16_224", "deit_small_distilled_patch16_224")
ARCHITECTURES = PLAIN + DISTILLED
KIND = "linear"  # the layers that a normaliser must be made for

__all__ = ["NormalizedDeit", "NormalizedDistilledDeit"]
default_cfgs = model_cfgs(ARCHITECTURES, KIND)
_filter_fn = partial(checkpoint_filter_fn, adapt_layer_scale=True)
register_models(__name__, NormalizedDeit, PLAIN, KIND, filter_fn=_filter_fn, out_indices=3)
register_models(__name__, NormalizedDistilledDeit, DISTILLED, KIND, filter_fn=_filter_fn, out_indices=3)
