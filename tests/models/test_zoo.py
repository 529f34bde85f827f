"""Which models there are, what they are made of, and what their options refuse."""

from types import ModuleType

import pytest
import timm
import torch
from timm.models.mlp_mixer import Affine
from torch import nn

import affnorm_zoo
from affnorm_zoo import PatchNormConv2d, get_normalizer, list_normalizers, models
from affnorm_zoo.layers import BoundLayer
from affnorm_zoo.models import zoo_models

CONV, LINEAR = (
    [name for name in list_normalizers() if getattr(get_normalizer(name), kind) is not None]
    for kind in ("conv", "linear")
)
BASELINES = [name for name in list_normalizers() if not get_normalizer(name).is_bound]
IMAGE_BASELINES = [name for name in BASELINES if get_normalizer(name).norm2d is not None]
# timm takes an identity for a norm that is left out
TOKEN_BASELINES = [name for name in BASELINES if get_normalizer(name).norm not in (None, nn.Identity)]
IMAGENET_RESNETS = (
    "resnet18", "resnet26", "resnet34", "resnet50", "resnet101", "resnet152",
    "resnet50d", "wide_resnet50_2", "resnext50_32x4d", "seresnet50",
)  # fmt: skip
CIFAR_RESNETS = ("resnet20_cifar", "resnet56_cifar", "resnet18_cifar")
IMAGENET_VITS = tuple(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large"))
CIFAR_VITS = ("vit_nano_patch4_32", "vit_tiny_patch4_32")
# of the other families, each module lists its own
FAMILIES = [module for module in vars(models).values() if hasattr(module, "ARCHITECTURES")]


def norms_of(module):
    return LINEAR if getattr(module, "KIND", "conv") == "linear" else CONV


def test_the_registry_holds_the_papers_maps_and_the_standard_norms_to_compare_with():
    assert set(CONV) >= {"patchnorm", "patchnorm_l2", "patchnorm_ws"}
    assert set(LINEAR) >= {"affinelike", "normlike"}
    assert set(BASELINES) >= {"batchnorm", "groupnorm", "layernorm", "rmsnorm", "none"}
    assert list_normalizers() == sorted(list_normalizers(), key=lambda name: name in BASELINES)


def test_the_zoo_holds_every_architecture_with_every_normaliser():
    expected = {f"{arch}_{norm}" for arch in IMAGENET_RESNETS + CIFAR_RESNETS for norm in CONV}
    expected |= {f"{arch}_{norm}" for arch in CIFAR_RESNETS for norm in IMAGE_BASELINES}
    expected |= {f"{arch}_{norm}" for arch in IMAGENET_VITS + CIFAR_VITS for norm in LINEAR}
    expected |= {f"{arch}_{norm}" for arch in CIFAR_VITS for norm in TOKEN_BASELINES}
    expected |= {f"{arch}_{norm}" for module in FAMILIES for arch in module.ARCHITECTURES for norm in norms_of(module)}
    assert set(zoo_models()) == expected
    assert set(timm.list_models("*patchnorm*")) == {name for name in expected if "patchnorm" in name}


@pytest.mark.parametrize("module", FAMILIES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_a_familys_module_is_called_as_timms_and_its_models_are_timms(module):
    """timm's own tests choose by the module's name."""
    stem = module.__name__.rpartition(".")[2]
    for arch in module.ARCHITECTURES:
        assert timm.model_entrypoint(arch).__module__ == f"timm.models.{stem}"
        model = timm.model_entrypoint(f"{arch}_{norms_of(module)[0]}")
        assert model.__module__ == f"affnorm_zoo.models.{stem}"


SMALL = ("efficientnet_b0", "tf_efficientnet_lite0", "mobilenetv2_050", "mobilenetv3_small_050", "regnetx_002",
         "regnety_002", "resnetv2_18", "resnetv2_50", "densenet121")  # fmt: skip


@pytest.mark.parametrize("arch", SMALL)
def test_a_family_has_timms_parameters_but_for_the_norms(arch):
    """A bias per output channel of a bound convolution, no scale and bias of a norm."""
    with torch.device("meta"):
        reference, model = timm.create_model(arch), timm.create_model(f"{arch}_patchnorm")
    norms = {f"{n}.{part}" for n, m in reference.named_modules() if isinstance(m, nn.BatchNorm2d)
             for part in ("weight", "bias")}  # fmt: skip
    biases = {f"{n}.bias" for n, m in model.named_modules() if isinstance(m, PatchNormConv2d)}
    shapes = [{name: tuple(p.shape) for name, p in net.named_parameters()} for net in (reference, model)]
    assert shapes[1].keys() == shapes[0].keys() - norms | biases
    assert all(shapes[0][name] == shapes[1][name] for name in shapes[0].keys() - norms)


TRANSFORMERS = ("convnext_atto", "convnext_tiny", "convnextv2_atto", "deit_tiny_distilled_patch16_224",
                "deit3_small_patch16_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256",
                "eva02_tiny_patch14_224", "eva02_base_patch14_224", "beit_base_patch16_224",
                "mixer_s32_224", "gmlp_ti16_224", "resmlp_12_224")  # fmt: skip


@pytest.mark.parametrize("arch", TRANSFORMERS)
def test_a_transformer_has_timms_parameters_but_for_the_norms(arch):
    """No scale and bias of a norm; of a bound layer a bias, which timm may hold beside it."""
    with torch.device("meta"):
        reference, model = timm.create_model(arch, num_classes=9), timm.create_model(f"{arch}_normlike", num_classes=9)
    norms = {f"{n}.{part}" for n, m in reference.named_modules() if isinstance(m, nn.LayerNorm | Affine)
             for part, _ in m.named_parameters()}  # fmt: skip
    biases = {f"{n}.bias" for n, m in model.named_modules() if isinstance(m, BoundLayer)}
    shapes = [{name: tuple(p.shape) for name, p in net.named_parameters()} for net in (reference, model)]
    beside = {name for name in shapes[0] if name.endswith(("q_bias", "v_bias"))}
    assert shapes[1].keys() == shapes[0].keys() - norms - beside | biases
    assert all(shapes[0][name] == shapes[1][name] for name in shapes[0].keys() & shapes[1].keys())


@pytest.mark.parametrize("arch", IMAGENET_RESNETS + IMAGENET_VITS)
def test_sizes_are_timms_but_for_the_norm(arch):
    """A bias per channel where a batch norm had scale and bias; no scale and bias where a layer norm had them."""
    with torch.device("meta"):
        reference = timm.create_model(arch)
        model = timm.create_model(f"{arch}_{'patchnorm' if 'resne' in arch else 'affinelike'}")
    norms = [m for m in reference.modules() if isinstance(m, (nn.BatchNorm2d, nn.LayerNorm))]
    affine = sum(m.weight.numel() for m in norms)
    kept = affine if "resne" in arch else 0
    assert (
        sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in reference.parameters()) - 2 * affine + kept
    )
    shared = {name: tuple(p.shape) for name, p in reference.named_parameters() if name.endswith("conv1.weight")}
    assert shared.items() <= {name: tuple(p.shape) for name, p in model.named_parameters()}.items()


def test_wrong_options_are_named():
    for norm_scale in ("root", [4.0, 4.0]):
        with pytest.raises(ValueError, match="norm_scale must be one of 'unit', 'rms', 'rms4'"):
            timm.create_model("resnet18_patchnorm", norm_scale=norm_scale)
    with pytest.raises(ValueError, match="does not apply to 'batchnorm'"):
        timm.create_model("resnet20_cifar_batchnorm", norm_scale="unit")
    with pytest.raises(ValueError, match="does not apply to 'patchnorm': use patchnorm_ws"):
        timm.create_model("resnet20_cifar_patchnorm", weight_standardization=True)
    for option in ({"damp_branches": False}, {"enlarge_tokens": True}):
        with pytest.raises(ValueError, match=r"enlarge_tokens are for .* do not apply to 'layernorm'"):
            timm.create_model("vit_nano_patch4_32_layernorm", **option)
    for name in (
        "resnet18_patchnorm",
        "resnet20_cifar_batchnorm",
        "vit_nano_patch4_32_layernorm",
        "swin_tiny_patch4_window7_224_affinelike",
    ):
        with pytest.raises(ValueError, match=f"norm_layer does not apply to '{name}', whose name decides its norms"):
            timm.create_model(name, norm_layer=nn.Identity)
    with pytest.raises(RuntimeError, match="there are no pretrained weights for resnet18_patchnorm"):
        timm.create_model("resnet18_patchnorm", pretrained=True)


def test_public_names():
    names = {name for name, value in vars(affnorm_zoo).items() if not name.startswith("_")}
    assert {name for name in names if not isinstance(getattr(affnorm_zoo, name), ModuleType)} == {
        "AffineLikeLinear", "Conversion", "L2Norm", "L2Norm2d", "NormLikeLinear", "NormalizerSpec", "PatchNormConv2d",
        "PatchNormConv2dSame", "Scale", "affine_like_linear", "bind", "convert", "get_normalizer", "l2_norm",
        "list_normalizers", "norm_layer", "norm_like_linear", "patch_norm_conv2d", "register_normalizer", "slot_norms",
    }  # fmt: skip
