"""The convolutional families whose norms hold their activation: what is bound to what, and that the function is it."""

import pytest
import timm
import torch
from timm.models._efficientnet_blocks import InvertedResidual
from timm.models.densenet import DenseLayer
from timm.models.resnetv2 import PreActBottleneck
from torch import nn
from torch.nn import functional as F

from affnorm_zoo import L2Norm2d, PatchNormConv2d, PatchNormConv2dSame, bind, norm_layer, slot_norms
from affnorm_zoo.factory import NormSlot, bound_layers

# architecture: its norms, the convolutions behind or before one, what stays an L2 norm
EXPECTED = {
    "efficientnet_b0": (49, 49, 0), "tf_efficientnet_lite0": (49, 49, 0), "efficientnetv2_rw_t": (107, 107, 0),
    "mobilenetv2_050": (52, 52, 0), "mobilenetv3_small_050": (34, 34, 0), "mobilenetv4_conv_small": (46, 46, 0),
    "regnetx_002": (44, 44, 0), "regnety_002": (44, 44, 0),
    "resnetv2_18": (17, 19, 1), "resnetv2_50": (49, 52, 1), "resnetv2_50d": (51, 54, 1),
    "densenet121": (121, 120, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_every_norm_gives_way_and_its_activation_stays(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    acts = sum(not isinstance(norm.act, nn.Identity) for norm in norms)
    kept = {id(parameter): key for key, parameter in model.named_parameters()}
    slot_norms(model, "patchnorm")
    bindings = bind(model)
    layers = {key: layer for key, layer in model.named_modules() if isinstance(layer, PatchNormConv2d)}
    counts = (len(norms), len(layers), sum(type(m) is L2Norm2d for m in model.modules()))
    assert counts == EXPECTED[name]
    assert len(bindings) == len(norms)
    assert not any(isinstance(m, nn.BatchNorm2d | NormSlot) for m in model.modules())
    assert all(kept[id(layer.weight)] == f"{key}.weight" for key, layer in layers.items())
    absorbed = sum(layer.activation != "none" for layer in layers.values())
    places = [model.get_submodule(binding.slot) for binding in bindings]
    identities = sum(isinstance(place, nn.Identity) for place in places)
    # what a norm held stands in its place, but for what a layer has taken over
    assert len(places) - identities - sum(type(place) is L2Norm2d for place in places) == acts - absorbed


def test_same_padding_is_kept_through_a_network():
    with torch.device("meta"):
        model = timm.create_model("tf_efficientnet_lite0")
    twins = [name for name, module in model.named_modules() if type(module).__name__ == "Conv2dSame"]
    slot_norms(model, "patchnorm_l2")
    bind(model)
    assert [name for name, m in model.named_modules() if type(m) is PatchNormConv2dSame] == twins != []


def bound(block, normalizer="patchnorm", **options):
    model = nn.Sequential(block)
    slot_norms(model, normalizer)
    bind(model, **options)
    for layer in bound_layers(model):
        nn.init.normal_(layer.bias, std=0.3)
    return block.eval()


def plainly(layer, x):
    """The layer without its activation, by the formula."""
    n = layer.weight[0].numel()
    wx = F.conv2d(x, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    ones = torch.ones_like(layer.weight)
    square = F.conv2d(x.square(), ones, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return n**0.5 * (wx + n**0.5 * layer.bias.reshape(-1, 1, 1)) / (square + n).sqrt()


@pytest.mark.parametrize("absorb", [True, False])
def test_an_inverted_residual_is_its_layers_one_by_one(absorb):
    block = bound(InvertedResidual(8, 8, exp_ratio=3.0, act_layer=nn.ReLU), absorb=absorb).double()
    x = torch.randn(2, 8, 7, 7, dtype=torch.float64)
    y = plainly(block.conv_dw, plainly(block.conv_pw, x).relu()).relu()
    torch.testing.assert_close(block(x), plainly(block.conv_pwl, y) + x)


@pytest.mark.parametrize("absorb", [True, False])
@pytest.mark.parametrize("shortcut", [True, False])
def test_pre_activation_binds_the_convolutions_that_read_the_norm(shortcut, absorb):
    from functools import partial

    from timm.layers import BatchNormAct2d, create_conv2d
    from timm.models.resnetv2 import DownsampleConv

    block = PreActBottleneck(
        16, 16, conv_layer=create_conv2d, norm_layer=partial(BatchNormAct2d, act_layer=nn.ReLU),
        proj_layer=DownsampleConv if shortcut else None,
    )  # fmt: skip
    block = bound(block, absorb=absorb).double()
    x = torch.randn(2, 16, 7, 7, dtype=torch.float64)
    given = x.clone()
    first = x.relu()
    y = plainly(block.conv3, plainly(block.conv2, plainly(block.conv1, first).relu()).relu())
    expected = y + (plainly(block.downsample.conv, first) if shortcut else x)
    torch.testing.assert_close(block(x), expected)
    assert torch.equal(x, given)  # the activation must not write into the residual stream
    assert [block.conv1.activation, block.conv3.activation] == ["relu" if absorb else "none", "none"]


def test_a_dense_layer_is_its_layers_one_by_one():
    layer = bound(DenseLayer(6, growth_rate=4, bn_size=2)).double()
    xs = [torch.randn(2, 2, 7, 7, dtype=torch.float64), torch.randn(2, 4, 7, 7, dtype=torch.float64)]
    expected = plainly(layer.conv2, plainly(layer.conv1, torch.cat(xs, 1).relu()).relu())
    torch.testing.assert_close(layer(xs), expected)


def test_only_blocks_with_a_shortcut_have_a_branch_to_damp():
    model = timm.create_model("efficientnet_b0")
    slot_norms(model, "patchnorm")
    bind(model)
    starts = {True: [], False: []}
    for block in model.modules():
        if isinstance(block, InvertedResidual):
            layer = block.conv_pwl
            # the layer's own rule: √2 √(1 + κ²/n) / c = 2 / c
            starts[block.has_skip].append(layer.weight.std().item() * layer.c / 2)
    assert len(starts[True]) == 9
    # the smallest kernel holds 96 · 24 draws: their deviation is off by 1.5 %
    assert starts[True] == pytest.approx([0.2] * 9, rel=0.06)
    assert starts[False] == pytest.approx([1] * len(starts[False]), rel=0.06)


@pytest.mark.parametrize(("name", "act"), [("efficientnet_b0", "silu"), ("regnetx_002", "relu")])
def test_slots_through_timms_constructor_give_the_same(name, act):
    with torch.device("meta"):
        given = timm.create_model(name, norm_layer=norm_layer("patchnorm", act_layer=act))
        own = timm.create_model(name)
    slot_norms(own, "patchnorm")
    assert bind(given) == bind(own)
    assert [type(m) for m in given.modules()] == [type(m) for m in own.modules()]


@pytest.mark.parametrize("name", ["resnetv2_18", "densenet121"])
def test_a_network_that_would_lose_its_activations_is_refused(name):
    """Its constructor calls the factory as for a norm without one."""
    with torch.device("meta"):
        model = timm.create_model(name, norm_layer=norm_layer("patchnorm"))
    with pytest.raises(ValueError, match=r"holds? an activation|with an activation.*slot_norms"):
        bind(model)


def test_a_pre_activation_regnet_is_refused_and_left_as_it_was():
    with torch.device("meta"):
        model = timm.create_model("regnetv_040")
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match="PreBottleneck"):
        slot_norms(model, "patchnorm")
    assert [type(module) for module in model.modules()] == before


@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_lite0", "mobilenetv3_small_050"])
def test_feature_extractors_are_bound_as_the_network_is(name):
    with torch.device("meta"):
        model = timm.create_model(name, features_only=True)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert len(slot_norms(model, "patchnorm")) == norms > 0
    assert len(bind(model)) == norms
