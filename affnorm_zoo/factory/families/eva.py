"""timm's EVA and EVA02: a vision transformer's blocks, with gated MLPs and norms inside the branches."""

from collections.abc import Iterator

from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm

from affnorm_zoo.factory.families._family import Binding, Family
from affnorm_zoo.factory.families.vision_transformer import (
    LARGE_START,
    attention,
    own_bias,
    post_norm_block,
    pre_norm_block,
    queries_and_keys,
)

_BRANCH_ENDS = (("attn.proj", "mlp.fc2"), 0.1)


def _eva(_: Eva) -> Iterator[Binding]:
    # these feed the residual stream, the pooling or the classifier, which stays a plain linear layer
    for name in ("norm_pre", "norm", "fc_norm"):
        yield Binding(name)


FAMILY = Family(
    roots=(Eva,),
    rules={Eva: _eva, EvaBlock: pre_norm_block, EvaBlockPostNorm: post_norm_block, EvaAttention: attention},
    layout="NLC",
    branch_ends={EvaBlock: _BRANCH_ENDS, EvaBlockPostNorm: _BRANCH_ENDS},
    prepare={EvaAttention: own_bias},
    queries_keys={EvaAttention: queries_and_keys},
    patches=lambda model: [model.patch_embed.proj],
    positions=lambda model: [] if model.pos_embed is None else [model.pos_embed],
    start=LARGE_START,
)
