"""Saved and loaded again: exports, and models whose layers were reparameterized."""

import json

import pytest
import timm
import torch
from timm.models import save_for_hf

import affnorm_zoo  # noqa: F401 registers the models


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18_patchnorm_ws", dict(num_classes=7, in_chans=2, norm_scale="unit", layers=[1, 1, 1, 1])),
        ("resnet20_cifar_patchnorm_l2", dict(num_classes=3)),
        ("efficientnet_b0_patchnorm", dict(num_classes=3, norm_scale="rms4", absorb=False)),
        ("mobilenetv3_small_050_patchnorm_ws", dict(num_classes=3)),
        ("regnety_002_patchnorm_l2", dict(num_classes=3)),
        ("resnetv2_18_patchnorm", dict(num_classes=3, global_pool="max", layers=[1, 1, 1, 1])),
        ("densenet121_patchnorm", dict(num_classes=3)),
        ("convnext_atto_normlike", dict(num_classes=3, conv_mlp=False, depths=[1, 1, 1, 1])),
        ("deit_tiny_distilled_patch16_224_affinelike", dict(img_size=32, damp_branches=True, depth=2)),
        ("swin_tiny_patch4_window7_224_normlike", dict(img_size=112, num_classes=3, depths=[1, 1, 1, 1])),
        ("swinv2_tiny_window8_256_affinelike", dict(img_size=64, norm_scale="rms4", depths=[1, 1, 1, 1])),
        ("eva02_tiny_patch14_224_affinelike", dict(img_size=28, num_classes=3, depth=2)),
        ("beitv2_base_patch16_224_affinelike", dict(img_size=32, num_classes=3, depth=2, embed_dim=96, num_heads=3)),
        ("mixer_s16_224_normlike", dict(img_size=48, num_classes=3)),
        ("gmlp_ti16_224_affinelike", dict(img_size=32, num_classes=3)),
        ("resmlp_12_224_normlike", dict(img_size=32, num_classes=3)),
        ("vit_nano_patch4_32_affinelike", dict(global_pool="avg", num_classes=5)),
        ("vit_nano_patch4_32_normlike", dict(img_size=24)),
        ("resnet20_cifar_patchnorm_ws.c10_e15_rms4", dict()),
        ("resnet20_cifar_patchnorm_ws.c10_e15_rms4", dict(norm_scale="unit")),
    ],
)
def test_local_dir_round_trip_is_exact(name, options, tmp_path):
    model = timm.create_model(name, **options).eval()
    for parameter in model.parameters():
        if not parameter.any():  # timm's classifier of a mixer is zero
            torch.nn.init.normal_(parameter)
    if "in_chans" in options:
        model.pretrained_cfg["input_size"] = (options["in_chans"], 64, 64)
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    size = options.get("img_size", 64 if "resnet18" in name else 32)
    x = torch.randn(2, options.get("in_chans", 3), size, size)
    assert torch.equal(model(x), loaded(x))
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=2).num_classes == 2


def test_reparameterized_model_is_the_plain_one_with_the_same_outputs():
    model = timm.create_model("resnet20_cifar_patchnorm_ws", pretrained=True).eval()
    plain = timm.create_model("resnet20_cifar_patchnorm").eval()
    fast = timm.utils.reparameterize_model(model)
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(fast(x), model(x))
        assert torch.equal(plain(x), model(x))
    assert plain.state_dict().keys() < model.state_dict().keys()  # the gains are still there, in the model itself


@pytest.mark.parametrize(
    "name", ["resnet20_cifar_patchnorm_ws.c10_e15_rms4", "resnet18_patchnorm_ws", "resnet18_patchnorm"]
)
@pytest.mark.parametrize("inplace", [False, True])
def test_an_export_names_the_architecture_that_a_reparameterized_model_is(name, inplace, tmp_path):
    model = timm.create_model(name, num_classes=3).eval()
    fast = timm.utils.reparameterize_model(model, inplace=inplace)
    save_for_hf(fast, tmp_path, safe_serialization=True)
    architecture = json.loads((tmp_path / "config.json").read_text())["architecture"]
    assert architecture == name.split(".")[0].removesuffix("_ws")
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), fast(x))
    if not inplace:
        assert model.pretrained_cfg["architecture"] == name.split(".")[0]


def test_a_half_reparameterized_model_is_not_exported(tmp_path):
    model = timm.create_model("resnet20_cifar_patchnorm_ws")
    model.conv1.reparameterize()
    with pytest.raises(ValueError, match="1 of 21 layers are reparameterized"):
        save_for_hf(model, tmp_path, safe_serialization=True)
