"""Swin transformers V2 with every linear normaliser: ``swinv2_tiny_window8_256_affinelike``."""

from functools import partial

from timm.models.swin_transformer_v2 import SwinTransformerV2, checkpoint_filter_fn

from affnorm_zoo.models._normalized import Normalized, model_cfgs, register_models


class NormalizedSwinTransformerV2(Normalized, SwinTransformerV2):
    """timm's SwinTransformerV2 with a divergence-free normaliser in place of its norms; see :meth:`Normalized.build`.

    The biases of queries and values are those of the layer ``qkv``, with one for the keys.
    """

    def init_plain_weights(self) -> None:
        """Initialise timm's layers by timm's rule."""
        self.apply(partial(SwinTransformerV2._init_weights, self))  # the rest zeroes norms, which are gone


ARCHITECTURES = (
    "swinv2_tiny_window8_256", "swinv2_tiny_window16_256", "swinv2_small_window8_256", "swinv2_base_window8_256",
)  # fmt: skip
KIND = "linear"  # the layers that a normaliser must be made for

__all__ = ["NormalizedSwinTransformerV2"]
default_cfgs = model_cfgs(ARCHITECTURES, KIND)
register_models(
    __name__,
    NormalizedSwinTransformerV2,
    ARCHITECTURES,
    KIND,
    filter_fn=checkpoint_filter_fn,
    out_indices=(0, 1, 2, 3),
)
