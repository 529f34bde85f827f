"""timm's VisionTransformer, and the layers of timm that its relatives share: attention, MLPs, patch embedding."""

from collections.abc import Iterator

from timm.layers import Attention, AttentionPoolLatent, GluMlp, Mlp, PatchEmbed, SwiGLU
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from affnorm_zoo.factory.families._family import Absorption, Binding, Family

# A vision transformer's start for AdamW at rates of about 1e-4, by which embeddings hardly grow: over ten epochs of
# ViT-S by 5 %. At Muon's 0.01 they do by themselves, those of the package's vit_nano 3-fold for patches and 20-fold for
# positions, and small starts are better: docs/recipes.md.
LARGE_START = {"damp_branches": False, "damp_attention": False, "enlarge_tokens": True}


def linear_layers(parent: nn.Module, name: str) -> tuple[str, ...]:
    """Paths from ``parent`` of all linear layers in its submodule ``name``."""
    layers = parent.get_submodule(name).named_modules(prefix=name)
    return tuple(path for path, module in layers if isinstance(module, nn.Linear))


def _block(block: Block) -> Iterator[Binding]:
    readers = {"attn": ("qkv", "gate"), "mlp": ("fc1", "fc1_g", "fc1_x")}
    for slot, part in (("norm1", "attn"), ("norm2", "mlp")):
        layers = linear_layers(block, part)
        read = tuple(path for path in layers if path in [f"{part}.{name}" for name in readers[part]])
        yield Binding(slot, read, norm_first=True, unnormed=tuple(path for path in layers if path not in read))


def _attention(attn: nn.Module) -> Iterator[Binding]:
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
        Block: _block,
        Attention: _attention,
        Mlp: _mlp,
        GluMlp: _glu,
        SwiGLU: _glu,
        AttentionPoolLatent: _attention_pool,
        PatchEmbed: _patch_embed,
    },
    layout="NLC",
    # at a tenth, the 48 branches of a ViT-L add up to an RMS of at most 0.7
    branch_ends={Block: (("attn.proj", "mlp.fc2"), 0.1)},
    queries_keys={Attention: lambda attn: (attn.qkv, 2 * attn.attn_dim)},
    patches=_patches,
    positions=lambda model: [] if model.pos_embed is None else [model.pos_embed],
    start=LARGE_START,
)
