"""MLP-Mixers, gMLPs and ResMLPs with every linear normaliser: ``timm.create_model("mixer_b16_224_affinelike")``."""

from timm.models.mlp_mixer import MlpMixer, ResBlock, checkpoint_filter_fn
from torch import nn

from affnorm_zoo.models._normalized import Normalized, model_cfgs, register_models

_RES_MLP_LAYER_SCALE = {12: 1e-4, 24: 1e-5}  # timm's, by the number of blocks


class NormalizedMlpMixer(Normalized, MlpMixer):
    """timm's MlpMixer with a divergence-free normaliser in place of its norms; see :meth:`Normalized.build`.

    The norms in front of the token mixing of a Mixer, and in the gates of a gMLP, are over the channels, and stay
    norms, without parameters. The blocks of a ResMLP have no norm: there the map takes the place of an Affine and the
    layer that reads it.
    """

    def init_plain_weights(self) -> None:
        """As timm, which has no rule for the LayerScale of a ResMLP."""
        super().init_plain_weights()
        blocks = [module for module in self.modules() if isinstance(module, ResBlock)]
        for block in blocks:
            for scale in (block.ls1, block.ls2):
                nn.init.constant_(scale, _RES_MLP_LAYER_SCALE[len(blocks)])


ARCHITECTURES = (
    "mixer_s32_224", "mixer_s16_224", "mixer_b32_224", "mixer_b16_224", "mixer_l16_224",
    "gmlp_ti16_224", "gmlp_s16_224", "gmlp_b16_224", "resmlp_12_224", "resmlp_24_224",
)  # fmt: skip
KIND = "linear"  # the layers that a normaliser must be made for

__all__ = ["NormalizedMlpMixer"]
default_cfgs = model_cfgs(ARCHITECTURES, KIND)
register_models(__name__, NormalizedMlpMixer, ARCHITECTURES, KIND, filter_fn=checkpoint_filter_fn, out_indices=3)
