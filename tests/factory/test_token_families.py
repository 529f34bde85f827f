"""Laws of the families of transformers and ConvNeXts, on small networks of timm's classes."""

import copy

import pytest
import torch
from timm.layers import GatedMlp
from timm.models.beit import Beit
from timm.models.convnext import ConvNeXt
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock, SpatialGatingBlock
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import nn
from torch.nn import functional as F

from affnorm_zoo import AffineLikeLinear, PatchNormConv2d, bind, norm_layer, slot_norms
from affnorm_zoo.factory import NormSlot, bound_layers
from affnorm_zoo.layers import L2Norm, L2Norm2d

VIT = dict(img_size=16, patch_size=4, embed_dim=24, num_heads=3, num_classes=5)
SWIN = dict(img_size=36, patch_size=4, embed_dim=12, depths=(2, 2), num_heads=(2, 3), num_classes=5)
CONVNEXT = dict(depths=(1, 1, 2, 1), dims=(8, 12, 16, 20), kernel_sizes=3, num_classes=5, ls_init_value=None)
MIXER = dict(img_size=16, patch_size=4, embed_dim=24, num_blocks=2, num_classes=5)

# name: network; norms that stay norms; layers that stay plain
NETWORKS = {
    "deit_distilled": (
        lambda: VisionTransformerDistilled(**VIT, depth=2), {"norm"}, {"patch_embed.proj", "head", "head_dist"}
    ),
    "convnext": (lambda: ConvNeXt(**CONVNEXT), {"head.norm"}, {"head.fc"}),
    "convnext_conv_mlp": (
        lambda: ConvNeXt(**CONVNEXT, conv_mlp=True, stem_type="overlap", head_norm_first=True),
        {"norm_pre"},
        {"stem.0", "head.fc"},
    ),
    "convnext_v2": (lambda: ConvNeXt(**CONVNEXT, use_grn=True), {"head.norm"}, {"head.fc"}),
    "swin": (
        lambda: SwinTransformer(**SWIN, window_size=3), {"patch_embed.norm", "norm"}, {"patch_embed.proj", "head.fc"}
    ),
    "swin_v2": (
        lambda: SwinTransformerV2(**SWIN, window_size=3),
        {"patch_embed.norm", "norm"},
        {"patch_embed.proj", "head.fc"}
        | {f"layers.{i}.blocks.{j}.attn.cpb_mlp.{k}" for i in (0, 1) for j in (0, 1) for k in (0, 2)},
    ),
    "eva_fused": (
        lambda: Eva(**VIT, depth=2, use_rot_pos_emb=True, swiglu_mlp=True, scale_attn_inner=True, init_values=0.5),
        {"fc_norm"},
        {"patch_embed.proj", "head"},
    ),
    "eva_sub_ln": (
        lambda: Eva(**VIT, depth=2, use_rot_pos_emb=True, qkv_fused=False, swiglu_mlp=True, scale_mlp=True),
        {"fc_norm"},
        {"patch_embed.proj", "head"},
    ),
    "eva_post_norm": (
        lambda: Eva(**VIT, depth=2, use_post_norm=True, global_pool="token"), {"norm"}, {"patch_embed.proj", "head"}
    ),
    "beit": (
        lambda: Beit(**VIT, depth=2, init_values=0.5, use_abs_pos_emb=False, use_rel_pos_bias=True),
        {"fc_norm"},
        {"patch_embed.proj", "head"},
    ),
    "beit_token": (
        lambda: Beit(**VIT, depth=2, global_pool="token", swiglu_mlp=True, scale_mlp=True),
        {"norm"},
        {"patch_embed.proj", "head"},
    ),
    "mixer": (lambda: MlpMixer(**MIXER), {"blocks.0.norm1", "blocks.1.norm1", "norm"}, {"stem.proj", "head"}),
    "gmlp": (
        lambda: MlpMixer(**MIXER, mlp_ratio=4, block_layer=SpatialGatingBlock, mlp_layer=GatedMlp),
        {"blocks.0.mlp_channels.gate.norm", "blocks.1.mlp_channels.gate.norm", "norm"},
        {"stem.proj", "head"},
    ),
    "resmlp": (
        lambda: MlpMixer(**MIXER, mlp_ratio=4, block_layer=ResBlock, norm_layer=Affine),
        {"norm"},
        {"stem.proj", "head"},
    ),
}  # fmt: skip


def build(name):
    torch.manual_seed(0)
    return NETWORKS[name][0]().eval()


@pytest.mark.parametrize("normalizer", ["affinelike", "normlike"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_is_bound_but_those_named_and_all_learn(name, normalizer):
    _, kept_norms, kept_layers = NETWORKS[name]
    model = build(name)
    slots = slot_norms(model, normalizer)
    bindings = bind(model)
    assert sorted(binding.slot for binding in bindings) == sorted(slots)
    assert {n for n, m in model.named_modules() if isinstance(m, L2Norm)} == kept_norms
    assert {n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)} == kept_layers
    assert not any(isinstance(m, NormSlot | nn.LayerNorm | Affine) for m in model.modules())
    assert all(layer.bias is not None for layer in bound_layers(model))
    size = SWIN["img_size"] if "swin" in name else 32 if "convnext" in name else VIT["img_size"]
    y = model(torch.randn(2, 3, size, size))
    y.backward(torch.randn_like(y))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


FAR = 1e5


@pytest.mark.parametrize("name", NETWORKS)
def test_with_a_large_kappa_the_network_without_norms_is_left(name):
    """At c = κ → ∞ a layer is W x + κ b. What is lost on the way is ‖x‖² / 2κ², some 1e-7 here, a few times over."""
    model = build(name).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    reference = copy.deepcopy(model)
    slot_norms(model, "affinelike")
    for binding in bind(model, scale=(FAR, FAR), init=False):
        bound = model.get_submodule(binding.slot)
        reference.set_submodule(binding.slot, copy.deepcopy(bound) if isinstance(bound, L2Norm) else nn.Identity())
    for layer in bound_layers(model):
        layer.bias.data.div_(FAR)
    size = SWIN["img_size"] if "swin" in name else 32 if "convnext" in name else VIT["img_size"]
    x = torch.randn(2, 3, size, size, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(2, 5, dtype=torch.float64)
    results = []
    for network in (model, reference):
        y = network(x)
        results.append((y, *torch.autograd.grad(y, x, cotangent)))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_a_partner_serves_the_convolutions_of_a_network_of_linear_layers():
    for normalizer, norm_like in (("affinelike", False), ("normlike", True)):
        model = build("convnext")
        slot_norms(model, normalizer)
        bind(model)
        convolutions = [m for m in model.modules() if isinstance(m, PatchNormConv2d)]
        assert len(convolutions) == 1 + 3 + 5  # stem, downsampling, depthwise
        assert {conv.norm_like for conv in convolutions} == {norm_like}


def test_the_layer_behind_the_norm_of_a_block_reads_it_and_the_depthwise_one_does_not():
    model = build("convnext")
    slot_norms(model, "affinelike")
    bindings = {binding.slot: binding for binding in bind(model)}
    block = bindings["stages.2.blocks.1.norm"]
    assert (block.layers, block.norm_first) == (("stages.2.blocks.1.mlp.fc1",), True)
    assert bindings["stages.1.downsample.0"].layers == ("stages.1.downsample.1",)
    assert bindings["stages.1.downsample.0"].norm_first
    assert (bindings["stem.1"].layers, bindings["stem.1"].norm_first) == (("stem.0",), False)


def test_a_gelu_is_taken_wherever_a_linear_layer_follows_it_directly():
    for name, count in (("deit_distilled", 2), ("convnext", 5), ("convnext_v2", 0), ("swin", 4), ("swin_v2", 4),
                        ("eva_post_norm", 2), ("eva_fused", 0), ("beit", 2), ("beit_token", 0),
                        ("mixer", 4), ("gmlp", 0), ("resmlp", 2)):  # fmt: skip
        model = build(name)
        slot_norms(model, "affinelike")
        bind(model)
        taken = [m for m in model.modules() if isinstance(m, AffineLikeLinear) and m.input_activation == "gelu"]
        assert len(taken) == count, name


@pytest.mark.parametrize("name", ["swin_v2", "eva_fused", "beit"])
def test_biases_beside_the_layer_move_into_it_and_only_when_all_can_be_bound(name):
    model = build(name)
    attn = (model.layers[1] if name == "swin_v2" else model).blocks[1].attn
    nn.init.normal_(attn.q_bias)
    nn.init.normal_(attn.v_bias)
    expected = torch.cat((attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias))
    slot_norms(model, "affinelike")
    handle = model.head.register_forward_hook(print)
    hooked = attn.proj.register_forward_hook(print)
    with pytest.raises(ValueError, match="has hooks"):
        bind(model)
    assert attn.q_bias is not None
    assert attn.qkv.bias is None
    handle.remove()
    hooked.remove()
    bind(model, init=False)
    assert attn.q_bias is attn.k_bias is attn.v_bias is None
    torch.testing.assert_close(attn.qkv.bias.detach(), expected, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore::UserWarning:timm.layers.interpolate")
@pytest.mark.parametrize("name", ["swin", "swin_v2"])
def test_the_input_size_of_a_bound_swin_transformer_can_change(name):
    model = build(name)
    slot_norms(model, "normlike")
    bind(model)
    assert all(not key.endswith("norm1.weight") for key in model.state_dict())
    model.double().set_input_size(img_size=48, window_size=4)
    assert model.layers[0].blocks[1].attn_mask.dtype == torch.float64
    assert model(torch.randn(1, 3, 48, 48, dtype=torch.float64)).shape == (1, 5)


def test_a_mixer_normalises_channels_before_it_mixes_tokens():
    model = build("mixer")
    slot_norms(model, "affinelike")
    bind(model)
    block = model.blocks[0]
    assert type(block.norm1) is L2Norm
    assert block.norm1.num_channels == 24
    assert block.mlp_tokens.fc1.in_features == 16
    assert isinstance(block.norm2, nn.Identity)


def along_tokens(layer, x):
    """A token layer by the formula of affine_like, (B, L, C) to (B, L, C): every channel is read at all tokens."""
    rows = x.transpose(1, 2)
    length = (rows.square().sum(-1, keepdim=True) + layer.kappa**2).sqrt()
    return (layer.c * (rows @ layer.weight.T + layer.kappa * layer.bias) / length).transpose(1, 2)


def channelwise(layer, x):
    """A layer over the channels by the formula of affine_like."""
    length = (x.square().sum(-1, keepdim=True) + layer.kappa**2).sqrt()
    return layer.c * (x @ layer.weight.T + layer.kappa * layer.bias) / length


def gating(block, x):
    mlp = block.mlp_channels
    u, v = F.gelu(channelwise(mlp.fc1, x)).chunk(2, -1)
    v = v / v.square().mean(-1, keepdim=True).sqrt()
    return x + channelwise(mlp.fc2, u * along_tokens(mlp.gate.proj, v))


def residual_mlp(block, x):
    x = x + block.ls1 * along_tokens(block.linear_tokens, x)
    hidden = F.gelu(channelwise(block.mlp_channels.fc1, x))
    return x + block.ls2 * channelwise(block.mlp_channels.fc2, hidden)


@pytest.mark.parametrize(("name", "definition"), [("gmlp", gating), ("resmlp", residual_mlp)])
def test_a_block_that_mixes_tokens_and_its_gradients_are_its_definition(name, definition):
    model = build(name)
    slot_norms(model, "affinelike")
    bind(model)
    block = model.blocks[1].double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 16, 24, dtype=torch.float64, requires_grad=True)
    g = torch.randn_like(x)
    wanted = (x, *block.parameters())
    for actual, expected in zip(
        *((y.detach(), *torch.autograd.grad(y, wanted, g)) for y in (block(x), definition(block, x))), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12 * expected.abs().max().item())


@pytest.mark.parametrize("normalizer", ["affinelike", "normlike"])
@pytest.mark.parametrize("scale", ["rms", "rms4", "unit"])
def test_the_gates_of_a_gmlp_start_open(normalizer, scale):
    """A gate is 1 where a channel has an RMS of 1 over the tokens, to within the 1e-5 of its weights, five-fold."""
    model = build("gmlp")
    slot_norms(model, normalizer)
    bind(model, scale=scale)
    for block in model.blocks:
        gate = block.mlp_channels.gate.proj
        rows = torch.randn(50, 16)
        rows = rows / rows.square().mean(-1, keepdim=True).sqrt()
        torch.testing.assert_close(gate(rows), torch.ones(50, 16), rtol=0, atol=5e-5)


def test_norms_in_front_of_a_pooling_over_pixels_are_over_the_channels():
    model = build("convnext_conv_mlp")
    slot_norms(model, "affinelike")
    bind(model)
    assert type(model.norm_pre) is L2Norm2d


def test_the_constructors_that_take_a_slot_give_what_slotting_gives():
    """timm's Swin V2 zeroes the bias of its norms while it is built, and its ConvNeXt wants 1x1 convolutions."""
    slot = norm_layer("affinelike")
    for given, built in (
        (ConvNeXt(**CONVNEXT, conv_mlp=True, norm_layer=slot), ConvNeXt(**CONVNEXT, conv_mlp=True)),
        (SwinTransformer(**SWIN, window_size=3, norm_layer=slot), SwinTransformer(**SWIN, window_size=3)),
        (Eva(**VIT, depth=1, norm_layer=slot), Eva(**VIT, depth=1)),
        (Beit(**VIT, depth=1, norm_layer=slot), Beit(**VIT, depth=1)),
        (MlpMixer(img_size=16, patch_size=4, num_blocks=1, norm_layer=slot),
         MlpMixer(img_size=16, patch_size=4, num_blocks=1)),
        (MlpMixer(**MIXER, mlp_ratio=4, block_layer=ResBlock, norm_layer=slot),
         MlpMixer(**MIXER, mlp_ratio=4, block_layer=ResBlock, norm_layer=Affine)),
    ):  # fmt: skip
        slot_norms(built, "affinelike")
        assert bind(given) == bind(built)
        assert [str(m) for m in given.modules()] == [str(m) for m in built.modules()]
