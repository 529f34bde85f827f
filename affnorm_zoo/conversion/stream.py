"""What writes into the residual stream of a transformer with norms before its branches, by timm's classes."""

from collections.abc import Iterator
from typing import Any

import torch
from timm.layers import Attention, AttentionRope, GluMlp, LayerNorm, LayerScale, Mlp, PatchEmbed, SwiGLU
from timm.models import beit
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from affnorm_zoo.errors import UsageError
from affnorm_zoo.layers import check_writable

TRANSFORMERS = (VisionTransformer, Eva, beit.Beit)
LAYER_NORMS = (nn.LayerNorm, LayerNorm)
# per block: its LayerScales, modules or parameters, and the layers behind which they stand
_BRANCH_ENDS = {
    Block: {"ls1": "attn.proj", "ls2": "mlp.fc2"},
    EvaBlock: {"gamma_1": "attn.proj", "gamma_2": "mlp.fc2"},
    beit.Block: {"gamma_1": "attn.proj", "gamma_2": "mlp.fc2"},
}
_ATTENTIONS = (Attention, AttentionRope, EvaAttention, beit.Attention)
_MLPS = (Mlp, GluMlp, SwiGLU)
_TOKENS = ("pos_embed", "cls_token", "reg_token", "dist_token")
_POOLS = ("token", "avg", "")  # a maximum over tokens does not commute with centring


def check_stream(name: str, root: Any) -> None:
    """Raise UsageError unless the norms of a transformer, called ``name``, stand before its branches and at its end."""
    prefix = name + "." if name else ""

    def refuse(what: str) -> UsageError:
        return UsageError(
            f"{prefix}{what}: only transformers whose norms stand before the branches and at the end are converted"
        )

    if type(root.patch_embed) is not PatchEmbed or not isinstance(root.patch_embed.norm, nn.Identity):
        raise refuse("patch_embed is not a plain PatchEmbed without a norm")
    if not _is_identity(root, "norm_pre"):
        raise refuse("norm_pre is a norm in the residual stream")
    if getattr(root, "attn_pool", None) is not None or root.global_pool not in _POOLS:
        raise refuse(f"global_pool={root.global_pool!r} is not one of {', '.join(map(repr, _POOLS))}")
    for index, block in enumerate(root.blocks):
        place = f"blocks.{index}"
        if type(block) not in _BRANCH_ENDS or type(block.attn) not in _ATTENTIONS:
            raise refuse(f"{place} is a {type(block).__name__} with {type(block.attn).__name__}")
        if type(block.mlp) not in _MLPS:
            raise refuse(f"{place}.mlp is a {type(block.mlp).__name__}")
        for part in ("attn.q_norm", "attn.k_norm", "attn.norm", "mlp.norm"):
            if not _is_identity(block, part):
                raise refuse(f"{place}.{part} is a norm")
    for path, module in root.named_modules():
        if isinstance(module, nn.LayerNorm) and type(module) not in LAYER_NORMS:
            raise refuse(f"{path} is a {type(module).__name__}")
        if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm):
            check_writable(module)


def _is_identity(module: nn.Module, path: str) -> bool:
    """Whether a transformer of this class has no such norm, or was built without."""
    return isinstance(dict(module.named_modules()).get(path, nn.Identity()), nn.Identity)


@torch.no_grad()
def fold_layer_scales(root: Any) -> None:
    """Multiply each branch's LayerScale into the branch's last layer, and remove it."""
    for block in root.blocks:
        for name, end in _BRANCH_ENDS[type(block)].items():
            scale = getattr(block, name)
            gamma = scale.gamma if isinstance(scale, LayerScale) else scale
            if not isinstance(gamma, nn.Parameter):
                continue
            layer = block.get_submodule(end)
            layer.weight.copy_(layer.weight.double() * gamma.double().unsqueeze(1))
            if layer.bias is not None:
                layer.bias.copy_(layer.bias.double() * gamma.double())
            setattr(block, name, nn.Identity() if isinstance(scale, LayerScale) else None)


def written(root: Any) -> Iterator[tuple[nn.Parameter, int]]:
    """Every parameter that writes into the residual stream, and its axis of channels."""
    ends = (block.get_submodule(end) for block in root.blocks for end in _BRANCH_ENDS[type(block)].values())
    for layer in (root.patch_embed.proj, *ends):
        yield layer.weight, 0
        if layer.bias is not None:
            yield layer.bias, 0
    for name in _TOKENS:
        if getattr(root, name, None) is not None:
            yield getattr(root, name), -1
