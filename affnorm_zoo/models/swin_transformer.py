"""Swin transformers with every linear normaliser: ``swin_tiny_patch4_window7_224_affinelike``."""

from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn

from affnorm_zoo.models._normalized import Normalized, model_cfgs, register_models


class NormalizedSwinTransformer(Normalized, SwinTransformer):
    """timm's SwinTransformer with a divergence-free normaliser in place of its norms; see :meth:`Normalized.build`."""


ARCHITECTURES = ("swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224", "swin_base_patch4_window7_224")
KIND = "linear"  # the layers that a normaliser must be made for

__all__ = ["NormalizedSwinTransformer"]
default_cfgs = model_cfgs(ARCHITECTURES, KIND)
register_models(
    __name__,
    NormalizedSwinTransformer,
    ARCHITECTURES,
    KIND,
    filter_fn=checkpoint_filter_fn,
    out_indices=(0, 1, 2, 3),
)
