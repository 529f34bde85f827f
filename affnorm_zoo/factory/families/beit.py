"""timm's BEiT and BEiT v2: a vision transformer's blocks, with a bias of the attention by relative position."""

from collections.abc import Iterator

from timm.models.beit import Attention, Beit, Block

from affnorm_zoo.factory.families._family import Binding, Family
from affnorm_zoo.factory.families.vision_transformer import LARGE_START, own_bias, pre_norm_block, queries_and_keys


def _beit(_: Beit) -> Iterator[Binding]:
    # these feed the pooling or the classifier, which stays a plain linear layer
    yield Binding("norm")
    yield Binding("fc_norm")


FAMILY = Family(
    roots=(Beit,),
    rules={Beit: _beit, Block: pre_norm_block},
    layout="NLC",
    branch_ends={Block: (("attn.proj", "mlp.fc2"), 0.1)},
    prepare={Attention: own_bias},
    queries_keys={Attention: queries_and_keys},
    patches=lambda model: [model.patch_embed.proj],
    positions=lambda model: [] if model.pos_embed is None else [model.pos_embed],
    start=LARGE_START,
)
