"""Heat maps of the factor, on layers whose answer is known in closed form."""

import pytest
import timm
import torch
from PIL import Image
from runs import invoke
from torch import nn

import affnorm_zoo
from affnorm_zoo.cli import cli
from affnorm_zoo.diagnostics import factor_map, map_layers
from affnorm_zoo.errors import UsageError
from affnorm_zoo.functional.patch_norm import patch_square_sum


def images(*shape):
    return 3 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("bias", "constant"), [(True, 1), (False, 0)])
@pytest.mark.parametrize(("stride", "dilation"), [((1, 1), (1, 1)), ((2, 1), (1, 2))])
def test_a_convolution_has_the_squared_length_of_each_patch(bias, constant, stride, dilation):
    conv = nn.Conv2d(3, 4, 3, stride, (1, 2), dilation, bias=bias).double()
    x = images(2, 3, 7, 9)
    expected = patch_square_sum(x, (3, 3), stride, (1, 2), dilation, 1)[:, 0] + constant
    torch.testing.assert_close(factor_map(nn.Sequential(conv), x, "0"), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize(("variant", "factor"), [("affine_like", 4.0), ("norm_like", 5.0)])
def test_ours_have_the_same_factor_everywhere(activation, variant, factor):
    conv = affnorm_zoo.PatchNormConv2d(
        3, 4, 3, padding=1, scale=(2.0, 0.5), activation=activation, variant=variant
    ).double()  # fmt: skip
    expected = torch.full((2, 7, 9), factor, dtype=torch.float64)
    torch.testing.assert_close(factor_map(nn.Sequential(conv), images(2, 3, 7, 9), "0"), expected, rtol=1e-10, atol=0)


def test_tokens_lie_as_their_patches_do():
    model = timm.create_model("vit_nano_patch4_32_layernorm").double()
    x = images(1, 3, 32, 32)
    seen = []
    layer = model.blocks[0].attn.qkv
    layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    model.eval()(x)
    tokens = seen[0][0, model.num_prefix_tokens :]
    expected = tokens.square().sum(1).view(1, 8, 8) + 1
    torch.testing.assert_close(factor_map(model, x, "blocks.0.attn.qkv"), expected, rtol=1e-10, atol=0)


def test_a_large_layer_is_measured_on_a_grid():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).double()
    x = images(1, 3, 8, 9)
    every = factor_map(model, x, "0")
    torch.testing.assert_close(factor_map(model, x, "0", most=4), every[:, ::2, 1::3], rtol=1e-10, atol=0)


def test_measuring_leaves_the_model_as_it_was():
    model = timm.create_model("resnet20_cifar_batchnorm").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    factor_map(model, torch.randn(1, 3, 32, 32), "layer3.0.conv1")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_layers_without_positions_have_no_map():
    model = timm.create_model("resnet20_cifar_patchnorm")
    layers = map_layers(model, torch.randn(1, 3, 32, 32))
    assert layers["conv1"] == (32, 32)
    assert layers["layer3.2.conv2"] == (8, 8)
    assert "fc" not in layers
    for layer in ("fc", "conv9"):
        with pytest.raises(UsageError, match=rf"'{layer}' has no map; .*layer3.2.conv2"):
            factor_map(model, torch.randn(1, 3, 32, 32), layer)
    windows = timm.create_model("swin_tiny_patch4_window7_224", img_size=56)
    names = map_layers(windows, torch.randn(1, 3, 56, 56))
    assert "layers.0.blocks.0.mlp.fc1" in names
    assert "layers.0.blocks.0.attn.qkv" not in names  # its rows are windows


def test_the_command_draws_a_row_per_picture_and_a_column_per_model(tmp_path):
    common = "divergence", "resnet20_cifar_patchnorm", "--images", 2, "--steps", 0, "--maps"
    sizes = {}
    for count, twins in enumerate([(), ("--vs", "resnet20_cifar_batchnorm")], 1):
        result = invoke(cli, *common, tmp_path / f"{count}.png", "--layer", "layer2.0.conv1", *twins)
        assert result.exit_code == 0, result.output
        sizes[count] = Image.open(tmp_path / f"{count}.png").size
    assert sizes[2][0] > sizes[1][0]
    assert sizes[2][1] == sizes[1][1]
    result = invoke(cli, *common, tmp_path / "none.png", "--layer", "fc")
    assert result.exit_code == 2
    assert "error: the layer 'fc' has no map" in result.output
    assert not (tmp_path / "none.png").exists()
