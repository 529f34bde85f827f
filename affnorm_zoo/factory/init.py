"""How networks of divergence-free layers start, beyond each layer's own rule."""

import torch
from timm.layers import Attention, PatchEmbed
from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from affnorm_zoo.layers import BoundLayer, check_writable

# The last layers of residual branches and the factor on their initial weights. A divergence-free branch cannot start
# at zero through its norm, which has no weight. At a fifth, the sum of 36 branches, the longest stage of a ResNet-152,
# has about the variance of the shortcut; at a tenth, the 48 branches of a ViT-L add up to an RMS of at most 0.7.
BRANCH_ENDS: dict[type[nn.Module], tuple[tuple[str, ...], float]] = {
    BasicBlock: (("conv2",), 0.2),
    Bottleneck: (("conv3",), 0.2),
    Block: (("attn.proj", "mlp.fc2"), 0.1),
}

# The factor on the initial queries and keys. A divergence-free layer's outputs start with an RMS of up to 1, and
# attention over their products would start at random; this leaves the logits 1/25 of their size, so that every token
# starts by looking at all. Yang et al. 2022, https://arxiv.org/abs/2203.03466, start the queries at zero.
QUERY_KEY_START = 0.2

# The factor on timm's initial embeddings of patches and positions, which leave tokens with an RMS of about 0.3. To a
# layer norm their length is nothing; an affine_like layer normalises only what is longer than κ, an RMS of 1.
TOKEN_START = 10.0

# A vision transformer's start for AdamW at rates of about 1e-4, by which embeddings hardly grow: over ten epochs of
# ViT-S by 5 %. At Muon's 0.01 they do by themselves, those of the package's vit_nano 3-fold for patches and 20-fold for
# positions, and small starts are better: docs/recipes.md.
LARGE_START = {"damp_branches": False, "damp_attention": False, "enlarge_tokens": True}


@torch.no_grad()
def init_bound_weights(
    model: nn.Module, *, damp_branches: bool = True, damp_attention: bool = True, enlarge_tokens: bool = False
) -> None:
    """Initialise the divergence-free layers of ``model``, and what they read first.

    Args:
        model: a bound network.
        damp_branches: let residual branches start small, by :data:`BRANCH_ENDS`.
        damp_attention: let queries and keys start small, by :data:`QUERY_KEY_START`.
        enlarge_tokens: let the embeddings of a vision transformer start large, by :data:`TOKEN_START`.

    Raises:
        ValueError: a parameter is computed from others, as by pruning. The model is then unchanged.
    """
    layers = bound_layers(model)
    enlarges = enlarge_tokens and bool(layers) and isinstance(model, VisionTransformer)
    has_patches = enlarges and isinstance(model.patch_embed, PatchEmbed)
    for module in [*layers, *([model.patch_embed.proj] if has_patches else [])]:
        check_writable(module)
    for layer in layers:
        layer.reset_parameters()
    for module in model.modules():
        names, factor = BRANCH_ENDS.get(type(module), ((), 1.0))
        for name in names if damp_branches else ():
            end = module.get_submodule(name)
            if end in layers:
                end.damp(factor)
        if damp_attention and isinstance(module, Attention) and module.qkv in layers:
            module.qkv.weight[: 2 * module.attn_dim].mul_(QUERY_KEY_START)
    if has_patches:
        model.patch_embed.proj.reset_parameters()  # drawn anew, not to be enlarged twice
        model.patch_embed.proj.weight.mul_(TOKEN_START)
    if enlarges and model.pos_embed is not None:
        nn.init.normal_(model.pos_embed, std=0.02 * TOKEN_START)


def bound_layers(model: nn.Module) -> list[BoundLayer]:
    """The divergence-free layers of ``model``, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, BoundLayer)]
