import pytest
import timm
import torch
from slotted import slotted, small_vit
from timm.models.resnet import BasicBlock
from torch import nn

import affnorm_zoo
from affnorm_zoo import (
    AffineLikeLinear,
    L2Norm,
    NormalizerSpec,
    NormLikeLinear,
    PatchNormConv2d,
    PatchNormConv2dSame,
    bind,
    get_normalizer,
    list_normalizers,
    norm_layer,
    register_normalizer,
)
from affnorm_zoo.factory import NormSlot

CONV = [name for name in list_normalizers() if get_normalizer(name).conv is not None]
IMAGE_BASELINES = [name for name in list_normalizers() if get_normalizer(name).norm2d is not None]


def count(model, kind):
    return sum(isinstance(module, kind) for module in model.modules())


# architecture: convolutions behind a norm, convolutions that stay plain
EXPECTED = {
    "resnet18": (20, 0),
    "resnet26": (29, 0),
    "resnet50": (53, 0),
    "resnet50d": (55, 0),
    "resnext50_32x4d": (53, 0),
    "seresnet50": (53, 32),
    "ecaresnet50d": (55, 0),
    "resnet10t": (14, 0),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_resnets_are_bound_completely_and_attention_is_left_alone(name):
    with torch.device("meta"):
        reference = timm.create_model(name)
        model = slotted(name)
    identities = {id(p): n for n, p in model.named_parameters()}
    bindings = bind(model)
    bound, plain = EXPECTED[name]
    assert len(bindings) == count(model, PatchNormConv2d) == count(reference, nn.BatchNorm2d) == bound
    assert sum(type(m) is nn.Conv2d for m in model.modules()) == plain
    assert not count(model, NormSlot)
    assert type(model.fc) is nn.Linear
    for layer_name, layer in model.named_modules():
        if isinstance(layer, PatchNormConv2d):
            assert identities[id(layer.weight)] == f"{layer_name}.weight"  # the parameter object is kept
            assert layer.bias is not None


def test_relu_is_absorbed_only_where_it_follows_the_norm():
    model = slotted("resnet50")
    bind(model)
    block = model.layer1[0]
    fused = [getattr(block, name).activation for name in ("conv1", "conv2", "conv3")]
    assert fused == ["relu", "relu", "none"]
    assert isinstance(block.act1, nn.Identity)
    assert isinstance(block.act3, nn.ReLU)
    assert block.downsample[0].activation == "none"
    assert model.conv1.activation == "relu"


def test_gelu_is_absorbed_only_where_nothing_comes_between():
    def mlp(**options):
        options = dict(options, img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3)
        model = timm.create_model("vit_tiny_patch16_224", norm_layer=norm_layer("affinelike"), **options)
        bind(model)
        return model.blocks[0].mlp

    assert mlp().fc2.input_activation == "gelu"
    assert isinstance(mlp().act, nn.Identity)
    for options in ({"proj_drop_rate": 0.1}, {"act_layer": nn.SiLU}, {"act_layer": "gelu_tanh"}):
        assert mlp(**options).fc2.input_activation == "none"
        assert not isinstance(mlp(**options).act, nn.Identity)


def test_other_activations_stay_modules():
    model = slotted("resnet18", act_layer=nn.ELU)
    bind(model)
    assert model.conv1.activation == "none"
    assert isinstance(model.act1, nn.ELU)


def test_without_absorbing_activations_stay_modules():
    resnet, vit = slotted("resnet18"), small_vit()
    activations = [
        name for model in (resnet, vit) for name, m in model.named_modules() if isinstance(m, nn.ReLU | nn.GELU)
    ]
    for model in (resnet, vit):
        bind(model, absorb=False)
    kept = [name for model in (resnet, vit) for name, m in model.named_modules() if isinstance(m, nn.ReLU | nn.GELU)]
    assert kept == activations
    assert len(kept) == 1 + 16 + 1
    assert resnet.conv1.activation == "none"


def test_an_activation_with_hooks_stays_where_it_is():
    resnet, vit, seen = slotted("resnet18"), small_vit(), []
    for module in (resnet.layer1[0].act1, vit.blocks[0].mlp.act):
        module.register_forward_hook(lambda module, args, out: seen.append(type(module)))
    bind(resnet)
    bind(vit)
    resnet(torch.randn(1, 3, 32, 32))
    vit(torch.randn(1, 3, 32, 32))
    assert seen == [nn.ReLU, nn.GELU]


def test_drop_block_between_norm_and_relu_prevents_the_fusion():
    model = slotted("resnet18", drop_block_rate=0.1)
    bind(model)
    assert model.layer4[0].conv1.activation == "none"
    assert model.layer1[0].conv1.activation == "relu"


@pytest.mark.parametrize("name", CONV)
def test_binding_only_fuses_what_the_network_already_computes(name):
    """With the same parameters, the bound network equals one whose blocks call the layers one by one."""
    model = slotted("resnet18", name, num_classes=5)
    bind(model)
    model.eval()
    block: BasicBlock = model.layer2[0]
    x = torch.randn(2, 64, 8, 8)
    y = block.conv2(block.conv1(x)) + block.downsample(x)
    torch.testing.assert_close(block(x), y.relu())


VIT_CASES = {
    "plain": {},
    "qk_norm": {"qk_norm": True},
    "scale_norms": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "pre_norm": {"pre_norm": True},
    "average_pool": {"global_pool": "avg"},
    "map_pool": {"global_pool": "map"},
}


@pytest.mark.parametrize("case", VIT_CASES)
@pytest.mark.parametrize("normalizer", ["affinelike", "normlike"])
def test_vits_are_bound_completely(case, normalizer):
    options = dict(VIT_CASES[case], img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5)
    model = timm.create_model("vit_tiny_patch16_224", norm_layer=norm_layer(normalizer), **options)
    bind(model)
    kind = get_normalizer(normalizer).linear
    assert all(isinstance(m, kind) for n, m in model.blocks.named_modules() if isinstance(m, nn.Linear))
    assert sum(isinstance(m, kind) for m in model.blocks.modules()) == 8
    assert type(model.head) is nn.Linear
    assert not count(model, NormSlot)
    expected_norms = {"qk_norm": 5, "pre_norm": 2}.get(case, 1)
    assert count(model, L2Norm) == expected_norms
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_sequentials_are_bound_by_position():
    conv = nn.Sequential(nn.Conv2d(3, 8, 3), norm_layer("patchnorm")(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    assert [b.layers for b in bind(conv)] == [("0",)]
    assert conv[0].activation == "relu"
    assert type(conv[3]) is nn.Conv2d
    mlp = nn.Sequential(nn.Linear(5, 7), norm_layer("normlike")(7), nn.Linear(7, 2))
    bind(mlp, scale="unit")
    assert isinstance(mlp[2], NormLikeLinear)
    assert type(mlp[0]) is nn.Linear


def test_same_padding_convolutions_get_their_twin():
    from timm.layers import Conv2dSame

    model = nn.Sequential(Conv2dSame(3, 8, 3, stride=2), norm_layer("patchnorm_l2")(8))
    bind(model)
    assert isinstance(model[0], PatchNormConv2dSame)
    assert model(torch.randn(1, 3, 7, 7)).shape == (1, 8, 4, 4)


def test_mode_device_and_dtype_are_kept():
    model = slotted("resnet18", device="meta", dtype=torch.float64).eval()
    bind(model)
    assert not any(module.training for module in model.modules())
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.float64)}


@pytest.mark.parametrize("name", IMAGE_BASELINES)
def test_baselines_go_through_the_same_door(name):
    model = timm.create_model("resnet18", norm_layer=norm_layer(name), num_classes=3)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 3)
    assert not count(model, NormSlot)


def test_the_registry_refuses_what_would_confuse():
    with pytest.raises(ValueError, match="already registered"):
        register_normalizer(NormalizerSpec(name="patchnorm", summary="", formula="", linear=AffineLikeLinear))
    with pytest.raises(ValueError, match="lower-case identifier"):
        register_normalizer(NormalizerSpec(name="Patch-Norm", summary="", formula="", linear=AffineLikeLinear))
    with pytest.raises(ValueError, match="either norm or norm2d, or conv or linear"):
        NormalizerSpec(name="empty", summary="", formula="")
    bound = [get_normalizer(name).is_bound for name in list_normalizers()]
    assert bound == sorted(bound, reverse=True)
    assert len(CONV) >= 3
    assert not hasattr(affnorm_zoo, "_REGISTRY")
