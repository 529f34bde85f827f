"""timm's Swin transformers: blocks like a vision transformer's, and a patch merging whose norm its layer reads."""

from collections.abc import Iterator
from dataclasses import replace

from timm.models.swin_transformer import PatchMerging, SwinTransformer, SwinTransformerBlock, WindowAttention

from affnorm_zoo.factory.families._family import Binding, Family
from affnorm_zoo.factory.families.vision_transformer import LARGE_START, pre_norm_block, queries_and_keys


def with_weight(bindings: Iterator[Binding]) -> Iterator[Binding]:
    """Let what stays of a block's norms have a weight: timm makes the attention mask on its device, in its dtype."""
    return (replace(binding, has_weight=True) for binding in bindings)


def _block(block: SwinTransformerBlock) -> Iterator[Binding]:
    return with_weight(pre_norm_block(block))


def _patch_merging(_: PatchMerging) -> Iterator[Binding]:
    yield Binding("norm", ("reduction",), norm_first=True)


def final_norm(_: SwinTransformer) -> Iterator[Binding]:
    """The norm in front of pooling and classifier stays one."""
    yield Binding("norm")


FAMILY = Family(
    roots=(SwinTransformer,),
    rules={SwinTransformer: final_norm, SwinTransformerBlock: _block, PatchMerging: _patch_merging},
    layout="NHWC",
    # at a tenth, the 36 branches of the longest stage of a Swin-B add up to an RMS of at most 0.6
    branch_ends={SwinTransformerBlock: (("attn.proj", "mlp.fc2"), 0.1)},
    queries_keys={WindowAttention: queries_and_keys},
    start=LARGE_START,
)
