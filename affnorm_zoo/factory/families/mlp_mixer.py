"""timm's MLP-Mixers: the first norm is over the channels, while the layers behind it mix tokens."""

from collections.abc import Iterator

from timm.models.mlp_mixer import MixerBlock, MlpMixer

from affnorm_zoo.factory.families._family import Binding, Family
from affnorm_zoo.factory.families.vision_transformer import LARGE_START


def _block(_: MixerBlock) -> Iterator[Binding]:
    # what the token layer reads is a channel at all positions, whose length no norm over the channels knows
    yield Binding("norm1", unnormed=("mlp_tokens.fc1", "mlp_tokens.fc2"))
    yield Binding("norm2", ("mlp_channels.fc1",), norm_first=True, unnormed=("mlp_channels.fc2",))


def _mixer(_: MlpMixer) -> Iterator[Binding]:
    yield Binding("norm")


FAMILY = Family(
    roots=(MlpMixer,),
    rules={MlpMixer: _mixer, MixerBlock: _block},
    layout="NLC",
    # at a tenth, the 48 branches of a Mixer-L add up to an RMS of at most 0.7
    branch_ends={MixerBlock: (("mlp_tokens.fc2", "mlp_channels.fc2"), 0.1)},
    patches=lambda model: [model.stem.proj],
    start=LARGE_START,
)
