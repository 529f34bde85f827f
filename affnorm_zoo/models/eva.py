"""EVA02 with every linear normaliser: ``timm.create_model("eva02_tiny_patch14_224_affinelike")``."""

from timm.models.eva import Eva, checkpoint_filter_fn

from affnorm_zoo.models._normalized import Normalized, model_cfgs, register_models


class NormalizedEva(Normalized, Eva):
    """timm's Eva with a divergence-free normaliser in place of its norms; see :meth:`Normalized.build`.

    Where queries, keys and values are one layer, the biases of queries and values are that layer's, with one for the
    keys.
    """


ARCHITECTURES = ("eva02_tiny_patch14_224", "eva02_small_patch14_224", "eva02_base_patch14_224")
KIND = "linear"  # the layers that a normaliser must be made for

__all__ = ["NormalizedEva"]
default_cfgs = model_cfgs(ARCHITECTURES, KIND)
register_models(__name__, NormalizedEva, ARCHITECTURES, KIND, filter_fn=checkpoint_filter_fn, out_indices=3)
