"""What cannot be bound is named, and left unchanged."""

import pytest
import torch
from slotted import slotted, small_vit
from timm.models.vision_transformer import ResPostBlock
from torch import nn
from torch.nn.utils import parametrizations, prune

from affnorm_zoo import (
    bind,
    norm_layer,
)


@pytest.mark.parametrize("where", ["layer1.0.conv2", "layer1.0.bn2", "blocks.0.attn.qkv", "blocks.0.mlp.fc2"])
def test_what_would_be_lost_of_a_layer_is_named_and_nothing_changed(where):
    for spoil, message in (
        (lambda layer: layer.register_forward_hook(print), "has hooks"),
        (lambda layer: layer.register_full_backward_hook(print), "has hooks"),
        (lambda layer: prune.random_unstructured(layer, "weight", 0.5), "computed from other tensors"),
        (parametrizations.orthogonal, "computed from other tensors"),
    ):
        model = slotted("resnet18") if where.startswith("layer") else small_vit()
        if where.endswith("bn2") and "hooks" not in message:
            continue
        spoil(model.get_submodule(where))
        before = [type(module) for module in model.modules()]
        with pytest.raises(ValueError, match=message):
            bind(model)
        assert [type(module) for module in model.modules()] == before


def unbindable():
    pool_between = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AvgPool2d(2), norm_layer("patchnorm")(8))
    yield pool_between, "slot '2' sits in a Sequential"
    yield nn.Sequential(nn.Conv2d(3, 8, 3), norm_layer("patchnorm")(9)), "slot '1' has 9 channels, but '0' has 8"
    yield nn.Sequential(norm_layer("affinelike")(9), nn.Linear(8, 2)), "slot '0' has 9 channels, but '1' has 8"
    yield nn.Sequential(norm_layer("patchnorm")(8), nn.Linear(8, 2)), "use one of affinelike, normlike"
    yield nn.Sequential(nn.Conv2d(3, 8, 3)), "has no slot to bind"
    post_norm = slotted("vit_tiny_patch16_224", "affinelike", depth=1, block_fn=ResPostBlock)
    yield post_norm, "sits in a ResPostBlock.*supported: timm ResNet"


@pytest.mark.parametrize(("model", "message"), list(unbindable()))
def test_what_cannot_be_bound_is_named_and_left_unchanged(model, message):
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        bind(model)
    assert [type(module) for module in model.modules()] == before


def test_subclasses_with_a_forward_of_their_own_are_refused():
    from timm.layers import ScaledStdConv2d

    with pytest.raises(ValueError, match="'0' is a ScaledStdConv2d"):
        bind(nn.Sequential(ScaledStdConv2d(3, 8, 3), norm_layer("patchnorm")(8)))


def test_an_unbound_slot_refuses_to_run_and_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"call affnorm_zoo.bind\(model\)"):
        slotted("resnet18")(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("name", ["regnetx_002", "efficientnet_b0"])
def test_a_slot_for_a_norm_and_its_activation_must_be_told_which(name):
    with pytest.raises(TypeError, match=r"slot_norms\(model, 'patchnorm'\), or pass .*act_layer="):
        slotted(name)


def test_norm_layer_says_what_is_wrong():
    with pytest.raises(ValueError, match="did you mean 'patchnorm'"):
        norm_layer("pachnorm")
    with pytest.raises(ValueError, match="layout must be"):
        norm_layer("layernorm", layout="HWC")
    with pytest.raises(ValueError, match="'batchnorm' has no NLC form"):
        norm_layer("batchnorm", layout="NLC")
