"""MLP-Mixers with every linear normaliser: ``timm.create_model("mixer_b16_224_affinelike")``."""

from timm.models.mlp_mixer import MlpMixer, checkpoint_filter_fn

from affnorm_zoo.models._normalized import Normalized, model_cfgs, register_models


class NormalizedMlpMixer(Normalized, MlpMixer):
    """timm's MlpMixer with a divergence-free normaliser in place of its norms; see :meth:`Normalized.build`.

    The norm in front of the token mixing is over the channels, and stays one, without parameters.
    """


ARCHITECTURES = ("mixer_s32_224", "mixer_s16_224", "mixer_b32_224", "mixer_b16_224", "mixer_l16_224")
KIND = "linear"  # the layers that a normaliser must be made for

__all__ = ["NormalizedMlpMixer"]
default_cfgs = model_cfgs(ARCHITECTURES, KIND)
register_models(__name__, NormalizedMlpMixer, ARCHITECTURES, KIND, filter_fn=checkpoint_filter_fn, out_indices=3)
