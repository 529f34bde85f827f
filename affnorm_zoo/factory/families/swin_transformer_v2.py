"""timm's Swin transformers V2: the norms stand at the ends of the branches, behind their layers, and start at zero."""

from collections.abc import Iterator

from timm.models.swin_transformer_v2 import PatchMerging, SwinTransformerV2, SwinTransformerV2Block, WindowAttention

from affnorm_zoo.factory.families._family import Binding, Family
from affnorm_zoo.factory.families.swin_transformer import final_norm, with_weight
from affnorm_zoo.factory.families.vision_transformer import own_bias, post_norm_block


def _block(block: SwinTransformerV2Block) -> Iterator[Binding]:
    return with_weight(post_norm_block(block))


def _patch_merging(_: PatchMerging) -> Iterator[Binding]:
    yield Binding("norm", ("reduction",))


FAMILY = Family(
    roots=(SwinTransformerV2,),
    rules={SwinTransformerV2: final_norm, SwinTransformerV2Block: _block, PatchMerging: _patch_merging},
    layout="NHWC",
    branch_ends={SwinTransformerV2Block: (("attn.proj", "mlp.fc2"), 0.1)},
    # no start of queries and keys: timm divides both by their lengths
    prepare={WindowAttention: own_bias},
)
