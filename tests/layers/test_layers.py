import copy
import pickle

import pytest
import torch
from definitions import max_error
from timm.layers import Conv2dSame
from torch import nn
from torch.nn import functional as F

from affnorm_zoo import (
    AffineLikeLinear,
    L2Norm,
    L2Norm2d,
    NormLikeLinear,
    PatchNormConv2d,
    PatchNormConv2dSame,
    affine_like_linear,
    norm_like_linear,
    patch_norm_conv2d,
)
from affnorm_zoo.functional.activation import ACTIVATIONS

LINEAR = {AffineLikeLinear: affine_like_linear, NormLikeLinear: norm_like_linear}
LAYERS = {
    "affine_like": lambda **kw: AffineLikeLinear(6, 4, **kw),
    "norm_like": lambda **kw: NormLikeLinear(6, 4, scale="rms", **kw),
    "patch_norm": lambda **kw: PatchNormConv2d(6, 4, 3, padding=1, **kw),
    "patch_norm_relu": lambda **kw: PatchNormConv2d(6, 4, 3, padding=1, activation="relu", **kw),
    "patch_norm_silu": lambda **kw: PatchNormConv2d(6, 4, 3, padding=1, activation="silu", **kw),
    "patch_norm_ws": lambda **kw: PatchNormConv2d(6, 4, 3, gain=True, weight_standardization=True, **kw),
    "patch_norm_same": lambda **kw: PatchNormConv2dSame(6, 4, 3, stride=2, variant="norm_like", **kw),
    "l2_norm": lambda **kw: L2Norm(6, **kw),
    "l2_norm_2d": lambda **kw: L2Norm2d(6, scale="rms", **kw),
}


def sample_for(layer, **kw):
    is_image = isinstance(layer, PatchNormConv2d | L2Norm2d)
    shape = (2, 6, 9, 8) if is_image else (2, 5, 6)
    return torch.randn(*shape, **kw)


@pytest.fixture(params=LAYERS)
def make(request):
    return LAYERS[request.param]


@pytest.mark.parametrize("kind", LINEAR, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layer_is_its_function_on_the_parents_state(kind, bias):
    parent = nn.Linear(6, 4, bias)
    layer = kind(6, 4, bias, scale="rms")
    layer.load_state_dict(parent.state_dict())
    parent.load_state_dict(layer.state_dict())
    x = torch.randn(3, 6)
    torch.testing.assert_close(layer(x), LINEAR[kind](x, parent.weight, parent.bias, scale="rms"))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [(1, 2), "same"], ids=str)
def test_convolution_takes_every_padding_mode(mode, padding):
    parent = nn.Conv2d(4, 6, (3, 2), padding=padding, padding_mode=mode, groups=2)
    layer = PatchNormConv2d(4, 6, (3, 2), padding=padding, padding_mode=mode, groups=2)
    layer.load_state_dict(parent.state_dict())
    x = torch.randn(2, 4, 6, 7)
    left, right, top, bottom = (0, 1, 1, 1) if padding == "same" else (2, 2, 1, 1)
    padded = F.pad(x, (left, right, top, bottom), "constant" if mode == "zeros" else mode)
    torch.testing.assert_close(layer(x), patch_norm_conv2d(padded, parent.weight, parent.bias, groups=2))


def test_same_convolution_is_timms_divided_by_the_patch():
    twin, layer = Conv2dSame(3, 5, 3, stride=2, bias=False), PatchNormConv2dSame(3, 5, 3, stride=2, bias=False)
    layer.load_state_dict(twin.state_dict())
    x = torch.randn(2, 3, 7, 10)
    ones = Conv2dSame(3, 1, 3, stride=2, bias=False)
    nn.init.ones_(ones.weight)
    torch.testing.assert_close(layer(x), twin(x) / (ones(x.square()) + 1).sqrt())


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "none"])
def test_activation_and_gain_are_what_they_say(activation):
    layer = PatchNormConv2d(4, 6, 3, gain=True, activation=activation)
    nn.init.normal_(layer.gain)
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 4, 6, 7)
    z = patch_norm_conv2d(x, layer.weight * layer.gain[:, None, None, None], layer.bias)
    torch.testing.assert_close(layer(x), getattr(F, activation.replace("hard_swish", "hardswish"))(z))


def test_float64_survives(make):
    layer = make(dtype=torch.float64)
    assert layer(sample_for(layer, dtype=torch.float64)).dtype == torch.float64


def test_meta_device_gives_shapes(make):
    layer = make(device="meta")
    assert all(p.is_meta for p in layer.parameters())
    assert layer(sample_for(layer, device="meta")).is_meta
    assert not list(layer.buffers())


def test_to_empty_and_reset_restores_a_working_layer(make):
    layer = make(device="meta").to_empty(device="cpu")
    if hasattr(layer, "reset_parameters"):
        layer.reset_parameters()
    assert layer(sample_for(layer)).isfinite().all()


@pytest.mark.parametrize("options", [{}, {"gain": True}, {"gain": True, "weight_standardization": True}], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_reparameterized_convolution_is_a_plain_one_with_the_same_outputs(options, groups):
    layer = PatchNormConv2d(6, 4, 3, padding=1, groups=groups, scale="rms", **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 6, 9, 8)
    expected = layer(x)
    layer.reparameterize()
    plain = PatchNormConv2d(6, 4, 3, padding=1, groups=groups, scale="rms")
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), expected)
    assert torch.equal(plain(x), expected)
    assert repr(layer) == repr(plain)


def test_copies_and_pickles_compute_the_same(make):
    layer = make()
    x = sample_for(layer)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))


def test_torchscript_and_export_compute_the_same(make):
    layer = make().eval()
    x = sample_for(layer)
    torch.testing.assert_close(torch.jit.script(layer)(x), layer(x))
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "patch_norm_relu"])
def test_in_place_residual_and_activation_behind_any_layer(name):
    layer = LAYERS[name]()
    x = sample_for(layer).requires_grad_()
    y = layer(x)
    y += 0.5
    y = F.relu(y, inplace=True)
    y.square().sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_convolution_keeps_the_memory_layout(layout):
    for groups in (1, 2):
        layer = PatchNormConv2d(6, 4, 3, groups=groups).to(memory_format=layout)
        assert layer(torch.randn(2, 6, 9, 8).to(memory_format=layout)).is_contiguous(memory_format=layout)


def test_repr_names_what_is_not_default():
    layer = PatchNormConv2d(6, 4, 3, gain=True, weight_standardization=True, activation="relu", scale="rms")
    for word in ("affine_like", "'rms'", "relu", "gain", "weight_standardization", "kernel_size=(3, 3)"):
        assert word in repr(layer)
    assert "scale='unit'" in repr(AffineLikeLinear(2, 3))
    assert "scale='rms'" in repr(L2Norm(5, scale="rms"))


@pytest.mark.parametrize("scale", ["unit", "rms", "rms4"])
@pytest.mark.parametrize("variant", ["affine_like", "norm_like"])
@pytest.mark.parametrize("options", [{}, {"gain": True, "weight_standardization": True}], ids=["plain", "ws"])
def test_initial_weights_keep_the_second_moment_through_relu(scale, variant, options):
    torch.manual_seed(1)
    layer = PatchNormConv2d(64, 256, 3, variant=variant, scale=scale, activation="relu", **options)
    x = torch.randn(4, 64, 12, 12).relu() * 2**0.5  # second moment 1
    # the moment over 256 channels of a chi-square has a relative deviation of about √(5/256) = 0.14
    assert layer(x).square().mean().item() == pytest.approx(1.0, abs=0.45)


@pytest.mark.parametrize("name", [name for name in LAYERS if not name.startswith("l2")])
def test_autocast_gives_the_low_precision_type(name):
    layer = LAYERS[name]()
    x = sample_for(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    # x, W and the product are each rounded to 2⁻⁸; roundings of 54 terms add up in quadrature at worst
    assert max_error(y, layer(x)) <= 8 * torch.finfo(torch.bfloat16).eps * layer(x).abs().max().item()


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="variant must be one of"):
        PatchNormConv2d(3, 3, 3, variant="patch")
    with pytest.raises(ValueError, match="activation must be one of"):
        PatchNormConv2d(3, 3, 3, activation="mish")
    with pytest.raises(ValueError, match="scale must be"):
        AffineLikeLinear(3, 3, scale="root")
