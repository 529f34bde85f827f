"""timm's MLP-Mixers, gMLPs and ResMLPs: some layers mix tokens, so that they read a channel at all positions."""

from collections.abc import Iterator

from timm.models.mlp_mixer import MixerBlock, MlpMixer, ResBlock, SpatialGatingBlock, SpatialGatingUnit

from affnorm_zoo.factory.families._family import Binding, Family
from affnorm_zoo.factory.families.vision_transformer import LARGE_START


def _mixer_block(_: MixerBlock) -> Iterator[Binding]:
    # what the token layer reads is a channel at all positions, whose length no norm over the channels knows
    yield Binding("norm1", unnormed=("mlp_tokens.fc1", "mlp_tokens.fc2"))
    yield Binding("norm2", ("mlp_channels.fc1",), norm_first=True, unnormed=("mlp_channels.fc2",))


def _gating_block(_: SpatialGatingBlock) -> Iterator[Binding]:
    yield Binding("norm", ("mlp_channels.fc1",), norm_first=True, unnormed=("mlp_channels.fc2",))


def _gating_unit(_: SpatialGatingUnit) -> Iterator[Binding]:
    # as in front of the token layers of a mixer
    yield Binding("norm", unnormed=("proj",))


def _res_block(_: ResBlock) -> Iterator[Binding]:
    # an Affine and the layer that reads it are one affine map, and no norm stands between them: the divergence-free
    # map takes the place of both, over whatever the layer reads
    yield Binding("norm1", ("linear_tokens",), norm_first=True, across_tokens=True)
    yield Binding("norm2", ("mlp_channels.fc1",), norm_first=True, unnormed=("mlp_channels.fc2",))


def _mixer(_: MlpMixer) -> Iterator[Binding]:
    yield Binding("norm")


FAMILY = Family(
    roots=(MlpMixer,),
    rules={
        MlpMixer: _mixer,
        MixerBlock: _mixer_block,
        SpatialGatingBlock: _gating_block,
        SpatialGatingUnit: _gating_unit,
        ResBlock: _res_block,
    },
    layout="NLC",
    # at a tenth, the 48 branches of a Mixer-L add up to an RMS of at most 0.7
    branch_ends={
        MixerBlock: (("mlp_tokens.fc2", "mlp_channels.fc2"), 0.1),
        SpatialGatingBlock: (("mlp_channels.fc2",), 0.1),
        ResBlock: (("linear_tokens", "mlp_channels.fc2"), 0.1),
    },
    gates={SpatialGatingUnit: "proj"},
    patches=lambda model: [model.stem.proj],
    start=LARGE_START,
)
