"""timm's VisionTransformer, and the layers of timm that its relatives share: attention, MLPs, patch embedding."""

from collections.abc import Iterator
from typing import Any

import torch
from timm.layers import Attention, AttentionPoolLatent, AttentionRope, GluMlp, Mlp, PatchEmbed, SwiGLU
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from affnorm_zoo.factory.families._family import Absorption, Binding, Family
from affnorm_zoo.layers import MixedAttention, RecomputedAttention

# A vision transformer's start for AdamW at rates of about 1e-4, by which embeddings hardly grow: over ten epochs of
# ViT-S by 5 %. At Muon's 0.01 they do by themselves, those of the package's vit_nano 3-fold for patches and 20-fold for
# positions, and small starts are better: docs/recipes.md.
LARGE_START = {"damp_branches": False, "damp_attention": False, "enlarge_tokens": True}


# the layers that read the norm of a branch; the others of the branch read none
_READERS = {"attn": ("qkv", "q_proj", "k_proj", "v_proj", "gate"), "mlp": ("fc1", "fc1_g", "fc1_x")}


def _branches(block: nn.Module) -> Iterator[tuple[str, str, list[str]]]:
    """Norm, branch and the branch's linear layers; what lies deeper makes position biases or gates."""
    for slot, part in (("norm1", "attn"), ("norm2", "mlp")):
        children = block.get_submodule(part).named_children()
        yield slot, part, [f"{part}.{name}" for name, module in children if isinstance(module, nn.Linear)]


def pre_norm_block(block: nn.Module) -> Iterator[Binding]:
    """The norms stand before attention and MLP: the layers that read them are fused with them."""
    for slot, part, layers in _branches(block):
        read = tuple(path for path in layers if path.rpartition(".")[2] in _READERS[part])
        yield Binding(slot, read, norm_first=True, unnormed=tuple(path for path in layers if path not in read))


def post_norm_block(block: nn.Module) -> Iterator[Binding]:
    """The norms stand at the ends of the branches: each is fused with the layer that it follows."""
    for (slot, _, layers), end in zip(_branches(block), ("attn.proj", "mlp.fc2"), strict=True):
        yield Binding(slot, (end,), unnormed=tuple(path for path in layers if path != end))


def queries_and_keys(attn: Any) -> list[tuple[nn.Module, int]]:
    """The layers of an attention that make its queries and keys, and how many of their first outputs those are."""
    if getattr(attn, "q_proj", None) is not None:
        return [(attn.q_proj, attn.q_proj.out_features), (attn.k_proj, attn.k_proj.out_features)]
    return [(attn.qkv, 2 * (attn.qkv.out_features // 3))]


def own_bias(attn: Any) -> None:
    """Give ``attn.qkv`` the biases that timm holds beside it, and adds without calling it: a bound layer is called.

    The bias of the keys, which timm holds at zero, becomes a parameter with the others.
    """
    if attn.q_bias is not None:
        bias = torch.cat([part.detach() for part in (attn.q_bias, attn.k_bias, attn.v_bias)])
        attn.qkv.bias = nn.Parameter(bias, requires_grad=attn.q_bias.requires_grad)
        attn.q_bias = attn.k_bias = attn.v_bias = None


def attention(attn: nn.Module) -> Iterator[Binding]:
    """The norms of queries and keys stay norms; one over the heads' outputs is fused with the projection."""
    yield Binding("q_norm")
    yield Binding("k_norm")
    if getattr(attn, "gate", None) is None:  # a gate multiplies between the norm and the projection
        yield Binding("norm", ("proj",), norm_first=True)
    else:
        yield Binding("norm")


def _glu(_: nn.Module) -> Iterator[Binding]:
    yield Binding("norm", ("fc2",), norm_first=True)


def _mlp(mlp: Mlp) -> Iterator[Binding | Absorption]:
    yield Binding("norm", ("fc2",), norm_first=True)
    if mlp.drop1.p == 0:
        yield Absorption("act", "fc2", "input")


def _attention_pool(_: AttentionPoolLatent) -> Iterator[Binding]:
    yield Binding("norm", ("mlp.fc1",), norm_first=True)
    yield Binding("q_norm")
    yield Binding("k_norm")


def _vision_transformer(_: VisionTransformer) -> Iterator[Binding]:
    # these feed the residual stream, the pooling or the classifier, which stays a plain linear layer
    for name in ("norm_pre", "norm", "fc_norm"):
        yield Binding(name)


def _patch_embed(embed: PatchEmbed) -> Iterator[Binding]:
    yield Binding("norm", layout="NCHW" if not embed.flatten and embed.output_fmt == "NCHW" else "NLC")


def _patches(model: VisionTransformer) -> list[nn.Module]:
    return [model.patch_embed.proj] if isinstance(model.patch_embed, PatchEmbed) else []


FAMILY = Family(
    roots=(VisionTransformer,),
    rules={
        VisionTransformer: _vision_transformer,
        Block: pre_norm_block,
        Attention: attention,
        AttentionRope: attention,
        Mlp: _mlp,
        GluMlp: _glu,
        SwiGLU: _glu,
        AttentionPoolLatent: _attention_pool,
        PatchEmbed: _patch_embed,
    },
    layout="NLC",
    # at a tenth, the 48 branches of a ViT-L add up to an RMS of at most 0.7
    branch_ends={Block: (("attn.proj", "mlp.fc2"), 0.1)},
    queries_keys=dict.fromkeys((Attention, AttentionRope, MixedAttention, RecomputedAttention), queries_and_keys),
    patches=_patches,
    positions=lambda model: [] if model.pos_embed is None else [model.pos_embed],
    start=LARGE_START,
)
