"""Slots made from the norms that a network already has, and slots that hold an activation."""

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, DropBlock2d, LayerNorm, LayerNorm2d, RmsNorm, RmsNorm2d
from timm.layers.norm_act import FrozenBatchNormAct2d, GroupNormAct, LayerNormAct, LayerNormAct2d
from timm.models.mlp_mixer import Affine
from torch import nn

from affnorm_zoo import L2Norm, L2Norm2d, PatchNormConv2d, bind, norm_layer, slot_norms
from affnorm_zoo.factory import NormSlot, slot_for
from affnorm_zoo.factory.plan import candidate_bindings

NORMS = {
    "BatchNorm2d": (nn.BatchNorm2d, "NCHW", nn.Identity),
    "SyncBatchNorm": (nn.SyncBatchNorm, "NCHW", nn.Identity),
    "BatchNormAct2d": (lambda n: BatchNormAct2d(n, act_layer=nn.SiLU), "NCHW", nn.SiLU),
    "without": (lambda n: BatchNormAct2d(n, apply_act=False), "NCHW", nn.Identity),
    "Frozen": (FrozenBatchNormAct2d, "NCHW", nn.ReLU),
    "GroupNorm": (lambda n: nn.GroupNorm(2, n), "NCHW", nn.Identity),
    "GroupNormAct": (lambda n: GroupNormAct(n, num_groups=2), "NCHW", nn.ReLU),
    "nn.LayerNorm": (nn.LayerNorm, "NLC", nn.Identity),
    "LayerNorm": (LayerNorm, "NLC", nn.Identity),
    "LayerNorm2d": (LayerNorm2d, "NCHW", nn.Identity),
    "LayerNormAct": (LayerNormAct, "NLC", nn.ReLU),
    "LayerNormAct2d": (LayerNormAct2d, "NCHW", nn.ReLU),
    "nn.RMSNorm": (nn.RMSNorm, "NLC", nn.Identity),
    "RmsNorm": (RmsNorm, "NLC", nn.Identity),
    "Affine": (Affine, "NLC", nn.Identity),
    "RmsNorm2d": (RmsNorm2d, "NCHW", nn.Identity),
}


@pytest.mark.parametrize("case", NORMS)
def test_a_slot_takes_channels_layout_and_activation_from_the_norm(case):
    build, layout, act = NORMS[case]
    norm = build(6).eval()
    slot = slot_for(norm, "patchnorm")
    assert (slot.num_channels, slot.layout, slot.normalizer) == (6, layout, "patchnorm")
    assert type(slot.act) is act
    assert act is nn.Identity or slot.act is norm.act
    assert not slot.training


def test_what_is_no_norm_and_what_needs_no_slot_are_refused():
    with pytest.raises(ValueError, match="norm of torch or timm, got Conv2d"):
        slot_for(nn.Conv2d(3, 4, 1), "patchnorm")
    with pytest.raises(ValueError, match="'batchnorm' is a norm of its own"):
        slot_for(nn.BatchNorm2d(3), "batchnorm")
    with pytest.raises(ValueError, match="does not apply to 'batchnorm'"):
        norm_layer("batchnorm", act_layer="relu")
    with pytest.raises(ValueError, match="no norm that a slot could replace; supported: timm ResNet"):
        slot_norms(nn.Sequential(nn.Conv2d(3, 8, 3)), "patchnorm")


def test_slots_may_take_the_place_of_a_networks_own_norms():
    given = timm.create_model("resnet18", norm_layer=norm_layer("patchnorm"))
    own = timm.create_model("resnet18")
    weight = own.layer1[0].conv1.weight
    names = slot_norms(own, "patchnorm")
    assert bind(given) == bind(own)
    assert len(names) == 20
    assert own.layer1[0].conv1.weight is weight


def test_a_norm_in_several_places_gives_way_in_each():
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Conv2d(4, 4, 3), norm)
    assert slot_norms(model, "patchnorm") == ["1", "3"]
    bind(model)
    assert [type(module) for module in model] == [PatchNormConv2d, nn.Identity] * 2


@pytest.mark.parametrize(
    "build",
    [
        lambda relu: nn.Sequential(nn.Conv2d(3, 4, 3), relu(), nn.Conv2d(4, 4, 3), relu(), nn.BatchNorm2d(4)),
        lambda relu: nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 3), relu(), nn.Conv2d(4, 4, 3), relu()), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
        ),
    ],
)
def test_an_activation_that_runs_twice_stands_between_a_layer_and_its_norm_both_times(build):
    shared = nn.ReLU()
    once, twice = build(nn.ReLU), build(lambda: shared)
    assert [b for b in candidate_bindings(once) if "." not in b.slot] == [
        b for b in candidate_bindings(twice) if "." not in b.slot
    ]


def test_norms_that_no_family_covers_stay():
    model = timm.create_model("resnet18", block_args=dict(attn_layer="gca"))
    kept = [name for name, module in model.named_modules() if isinstance(module, LayerNorm2d)]
    slot_norms(model, "patchnorm")
    bind(model)
    assert kept == [name for name, module in model.named_modules() if isinstance(module, LayerNorm2d)] != []


def fused(act_layer, **options):
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm_layer("patchnorm", act_layer=act_layer)(8, inplace=True, **options))


def test_a_slots_activation_is_absorbed_where_nothing_comes_between_or_stays_in_its_place():
    absorbed, kept, dropped, bare = (
        fused("relu"), fused("elu"), fused("relu", drop_layer=lambda: DropBlock2d(0.1)), fused("relu", apply_act=False),
    )  # fmt: skip
    for model in (absorbed, kept, dropped, bare):
        bind(model)
    assert (absorbed[0].activation, type(absorbed[1])) == ("relu", nn.Identity)
    assert (kept[0].activation, type(kept[1])) == ("none", nn.ELU)
    assert (dropped[0].activation, [type(m) for m in dropped[1]]) == ("none", [DropBlock2d, nn.ReLU])
    assert (bare[0].activation, type(bare[1])) == ("none", nn.Identity)
    modular = fused("relu")
    bind(modular, absorb=False)
    assert type(modular[1]) is nn.ReLU
    modular.load_state_dict(absorbed.state_dict())
    x = torch.randn(2, 3, 7, 7)
    assert torch.equal(modular(x), absorbed(x))


@pytest.mark.parametrize(("layout", "kind"), [("NCHW", L2Norm2d), ("NLC", L2Norm)])
def test_a_slot_without_layers_normalises_the_channels_of_its_layout(layout, kind):
    """Of a patch embedding, whose layout only the module itself knows."""
    model = timm.create_model(
        "vit_tiny_patch16_224", norm_layer=norm_layer("affinelike"), embed_norm_layer=norm_layer("affinelike"),
        img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3, dynamic_img_size=True,
    )  # fmt: skip
    model.patch_embed.flatten = layout == "NLC"
    model.patch_embed.output_fmt = "NCHW"
    bind(model)
    assert type(model.patch_embed.norm) is kind
    out = model.patch_embed(torch.randn(2, 3, 40, 56))
    rms = out.square().mean(1 if layout == "NCHW" else -1)
    torch.testing.assert_close(rms, torch.ones_like(rms), rtol=1e-5, atol=0)


def test_bindings_say_on_which_side_of_the_norm_their_layers_stand():
    resnet = timm.create_model("resnet18", norm_layer=norm_layer("patchnorm"))
    assert not any(binding.norm_first or binding.unnormed for binding in bind(resnet))
    vit = timm.create_model("vit_tiny_patch16_224", norm_layer=norm_layer("affinelike"), depth=1)
    first, second, last = bind(vit)
    assert (first.layers, first.unnormed) == (("blocks.0.attn.qkv",), ("blocks.0.attn.proj",))
    assert (second.layers, second.unnormed) == (("blocks.0.mlp.fc1",), ("blocks.0.mlp.fc2",))
    assert (last.slot, last.layers, last.layout) == ("norm", (), "NLC")
    assert first.norm_first
    assert not any(isinstance(m, NormSlot | PatchNormConv2d) for m in vit.modules())
