"""BEiT and BEiT v2 with every linear normaliser: ``timm.create_model("beit_base_patch16_224_affinelike")``."""

from timm.models.beit import Beit, checkpoint_filter_fn

from affnorm_zoo.models._normalized import Normalized, model_cfgs, register_models


class NormalizedBeit(Normalized, Beit):
    """timm's Beit with a divergence-free normaliser in place of its norms; see :meth:`Normalized.build`.

    The biases of queries and values are those of the layer that makes them, with one for the keys.
    """


ARCHITECTURES = ("beit_base_patch16_224", "beitv2_base_patch16_224")
KIND = "linear"  # the layers that a normaliser must be made for

__all__ = ["NormalizedBeit"]
default_cfgs = model_cfgs(ARCHITECTURES, KIND)
register_models(__name__, NormalizedBeit, ARCHITECTURES, KIND, filter_fn=checkpoint_filter_fn, out_indices=3)
