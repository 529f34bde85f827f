"""Options of the models: absorbed activations, hooks, timm's own options, stems of other channel counts."""

import warnings

import pytest
import timm
import torch
from safetensors.torch import save_file
from shallow import shallow
from timm.layers import StdConv2d
from timm.models import save_for_hf
from timm.optim import param_groups_layer_decay
from torch import nn

from affnorm_zoo import AffineLikeLinear, NormLikeLinear, PatchNormConv2d


@pytest.mark.parametrize(
    "name",
    ["resnet18_patchnorm", "vit_nano_patch4_32_affinelike", "vit_nano_patch4_32_normlike",
     *(pytest.param(n, marks=pytest.mark.slow) for n in ("resnet50_patchnorm_l2", "resnet50d_patchnorm_ws"))],
)  # fmt: skip
def test_without_absorbing_every_activation_is_a_module_and_the_function_the_same(name, tmp_path):
    kinds = (nn.ReLU, nn.GELU)
    reference = timm.create_model(name.rpartition("_patchnorm")[0] if "resnet" in name else "vit_tiny_patch16_224")
    absorbed = timm.create_model(name, num_classes=3)
    modular = timm.create_model(name, num_classes=3, absorb=False)
    modular.load_state_dict(absorbed.state_dict())

    def count(model):
        return sum(isinstance(module, kinds) for module in model.modules())

    per_network = {"vit_nano_patch4_32": 6}.get(name.rpartition("_")[0], count(reference))
    assert count(modular) == per_network > count(absorbed)
    x = torch.randn(2, 3, 64, 64) if "resnet" in name else torch.randn(2, 3, 32, 32)
    g = torch.randn(2, 3)
    gradients = []
    for model in (absorbed, modular):
        y = model(x)
        gradients.append((y, *torch.autograd.grad(y, [*model.parameters()], g)))
    for actual, expected in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    save_for_hf(modular, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert count(loaded) == per_network
    for module in loaded.modules():  # and so each can be replaced
        for child_name, child in list(module.named_children()):
            if isinstance(child, kinds):
                setattr(module, child_name, nn.SiLU())
    assert not torch.equal(loaded.eval()(x), modular.eval()(x))


@pytest.mark.parametrize(
    ("name", "absorb"),
    [("resnet20_cifar_patchnorm", False), ("resnet50_patchnorm_ws", True),
     *(pytest.param(*case, marks=pytest.mark.slow) for case in (
         ("resnet20_cifar_patchnorm", True), ("resnet50_patchnorm_ws", False), ("resnet50d_patchnorm_l2", True),
         ("resnet50d_patchnorm_l2", False)))],
)  # fmt: skip
def test_hooks_on_every_convolution_keep_its_output_and_its_gradient(name, absorb):
    model = timm.create_model(name, num_classes=3, absorb=absorb).eval().double()
    convs = {key: module for key, module in model.named_modules() if isinstance(module, PatchNormConv2d)}
    forward, backward, handles = {}, {}, []
    for key, module in convs.items():
        handles += [
            module.register_forward_hook(lambda m, i, o, key=key: forward.update({key: (i[0].clone(), o.detach())})),
            module.register_full_backward_hook(lambda m, dx, dz, key=key: backward.update({key: dz[0]})),
        ]
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    g = torch.randn(1, 3, dtype=torch.float64)
    (hooked,) = torch.autograd.grad(model(x), x, g)
    for handle in handles:
        handle.remove()
    (plain,) = torch.autograd.grad(model(x), x, g)
    # without hooks a block's end is one op, which sums in another order
    torch.testing.assert_close(hooked, plain, rtol=1e-9, atol=1e-9 * plain.abs().max().item())
    assert backward.keys() == forward.keys() == convs.keys()
    for key, (input_, kept) in forward.items():
        with torch.no_grad():
            assert torch.equal(convs[key](input_), kept), key


def test_vit_options_of_timm():
    name = "vit_nano_patch4_32_affinelike"
    assert timm.create_model(name, img_size=48)(torch.randn(1, 3, 48, 48)).shape == (1, 10)
    dynamic = timm.create_model(name, dynamic_img_size=True)
    assert dynamic(torch.randn(1, 3, 40, 56)).shape == (1, 10)
    averaged = timm.create_model(name, global_pool="avg", num_classes=3, drop_path_rate=0.1)
    assert averaged(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert isinstance(averaged.blocks[0].mlp.fc2, AffineLikeLinear)
    kinds = [m for m in timm.create_model("vit_nano_patch4_32_normlike").modules() if isinstance(m, NormLikeLinear)]
    assert len(kinds) == 6 * 4


def test_cifar_stages_and_reductions():
    model = timm.create_model("resnet20_cifar_patchnorm", features_only=True)
    assert model.feature_info.channels() == [16, 16, 32, 64]
    assert model.feature_info.reduction() == [1, 1, 2, 4]
    assert [tuple(f.shape[2:]) for f in model(torch.randn(1, 3, 32, 32))] == [(32, 32), (32, 32), (16, 16), (8, 8)]


@pytest.mark.parametrize(
    "name",
    ["resnet18_patchnorm", "resnetv2_18_patchnorm", "mobilenetv3_small_050_patchnorm", "convnext_atto_affinelike",
     "vit_tiny_patch16_224_affinelike"],
)  # fmt: skip
def test_feature_extractors_of_one_name_do_not_change_each_other(name):
    with torch.device("meta"):
        whole, part, again = (
            timm.create_model(name, features_only=True, **options) for options in ({}, {"out_indices": (0, 1)}, {})
        )
    assert part.feature_info.module_name() == [info["module"] for info in whole.feature_info.info[:2]]
    assert again.feature_info.module_name() == whole.feature_info.module_name() != part.feature_info.module_name()
    assert type(again) is type(part) is type(whole)


STEM_CASES = ["resnet18_patchnorm", "resnet18_patchnorm_l2", "resnet18_patchnorm_ws", "resnet50d_patchnorm",
              "tf_efficientnet_lite0_patchnorm", "resnetv2_18_patchnorm"]  # fmt: skip


@pytest.mark.parametrize("name", STEM_CASES)
@pytest.mark.parametrize(
    ("norm_scale", "in_chans"),
    [("rms", 1), ("unit", 6),
     *(pytest.param(*case, marks=pytest.mark.slow) for case in (("rms", 6), ("rms4", 1), ("rms4", 6), ("unit", 1)))],
)  # fmt: skip
def test_a_stem_keeps_its_response_to_grey_images_of_other_channel_counts(name, norm_scale, in_chans, tmp_path):
    options = dict(norm_scale=norm_scale, num_classes=4, **shallow(name))
    source = timm.create_model(name, **options).eval()
    with torch.no_grad():
        for key, p in source.named_parameters():
            if key.endswith(".bias") or "gain" in key:
                p.add_(0.3 * torch.randn_like(p))
    file = tmp_path / "weights.safetensors"
    save_file(source.state_dict(), file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = timm.create_model(
            name, **options, in_chans=in_chans, pretrained=True,
            pretrained_cfg_overlay=dict(file=str(file), num_classes=4),
        ).eval()  # fmt: skip
    grey = torch.randn(2, 1, 64, 64)
    expected, actual = source(grey.expand(-1, 3, -1, -1)), adapted(grey.expand(-1, in_chans, -1, -1))
    # exact but for float32 roundings and, under weight standardisation, eps = 1e-6 beside a variance of about 1e-2
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


def test_drop_path_checkpointing_and_layer_decay_work():
    model = timm.create_model("resnet20_cifar_patchnorm", drop_path_rate=0.2)
    model.set_grad_checkpointing()
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    groups = param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.9)
    undecayed = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    assert all(id(m.bias) in undecayed for m in model.modules() if isinstance(m, PatchNormConv2d))


FAMILY_CASES = ["mobilenetv3_small_050_patchnorm", "tf_efficientnet_lite0_patchnorm", "regnety_002_patchnorm_ws",
                "resnetv2_18_patchnorm", "densenet121_patchnorm"]  # fmt: skip


@pytest.mark.parametrize("name", FAMILY_CASES)
def test_a_step_along_a_familys_gradient_lowers_the_loss_by_what_it_says(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4)
    x, labels = torch.randn(4, 3, 64, 64), torch.arange(4)
    parameters = list(model.parameters())
    loss = nn.functional.cross_entropy(model(x), labels)
    gradients = torch.autograd.grad(loss, parameters)
    # a step so small that the loss falls by a thousandth: the second order is then about as small beside it
    rate = 1e-3 * loss.item() / sum(g.square().sum().item() for g in gradients)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= rate * gradient
        fall = loss.item() - nn.functional.cross_entropy(model(x), labels).item()
    assert fall == pytest.approx(1e-3 * loss.item(), rel=0.2)


def test_standardised_weights_of_a_baseline_ignore_shift_and_scale_of_every_kernel(tmp_path):
    model = timm.create_model("resnet20_cifar_groupnorm", weight_standardization=True, zero_init_last=False).double()
    assert {type(m) for m in model.modules() if isinstance(m, nn.Conv2d)} == {StdConv2d}
    assert model.state_dict().keys() == timm.create_model("resnet20_cifar_groupnorm").state_dict().keys()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    before = model(x)
    with torch.no_grad():
        for conv in [m for m in model.modules() if isinstance(m, nn.Conv2d)]:
            kernels = (-1, 1, 1, 1)
            conv.weight.mul_(3 + torch.rand(conv.out_channels).view(kernels))  # longer, so that eps counts for less
            conv.weight.add_(torch.randn(conv.out_channels).view(kernels))
    torch.testing.assert_close(model(x), before, rtol=1e-3, atol=1e-3)
    save_for_hf(model.float(), tmp_path, safe_serialization=True)
    assert any(isinstance(m, StdConv2d) for m in timm.create_model(f"local-dir:{tmp_path}", pretrained=True).modules())
