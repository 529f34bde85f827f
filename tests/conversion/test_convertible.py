"""Which networks and images can be converted, and what is said of the others."""

import copy

import pytest
import timm
import torch
from batch_normed import NEARLY_AFFINE, Plain, pixels, settle
from timm.layers import BatchNormAct2d, Conv2dSame, ScaledStdConv2d, freeze_batch_norm_2d
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from affnorm_zoo import PatchNormConv2d, convert
from affnorm_zoo.errors import UsageError


class Swapped(nn.Module):
    """Runs its parts in another order than it holds them, beside one without a norm."""

    def __init__(self):
        super().__init__()
        self.second = nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6))
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return {"maps": [self.last(self.second(self.first(x)))]}


def test_layers_are_fitted_in_the_order_of_execution_inside_any_module():
    source = settle(Swapped(), pixels())
    conversion = convert(source, "patchnorm", images=pixels(), scale=NEARLY_AFFINE, fit="lstsq")
    assert [row.name for row in conversion.layers] == ["first.0", "second.0"]
    assert conversion.agreement is None
    assert type(conversion.model.last) is nn.Conv2d
    torch.testing.assert_close(conversion.model(pixels())["maps"], source(pixels())["maps"])


def test_a_norm_in_several_places_is_converted_in_each():
    norm, relu = nn.BatchNorm2d(4), nn.ReLU()
    source = settle(nn.Sequential(nn.Conv2d(3, 4, 3), norm, relu, nn.Conv2d(4, 4, 3), norm, relu), pixels())
    conversion = convert(source, "patchnorm", images=pixels(), scale=NEARLY_AFFINE, fit="lstsq")
    assert [row.name for row in conversion.layers] == ["0", "3"]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in conversion.model.modules())
    torch.testing.assert_close(conversion.model(pixels()), source(pixels()))


def twice():
    part = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))
    return nn.Sequential(part, part)


def unused():
    model = Plain(3, 4, 3)
    model.other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    return model


class Branching(Plain):
    def forward(self, x):
        return self.body[0](x) + self.body(x)


def conv_and(*others, kind=nn.Conv2d):
    return nn.Sequential(kind(3, 4, 3), *others)


REFUSED = {
    "no running statistics": (
        lambda: conv_and(nn.BatchNorm2d(4, track_running_stats=False)),
        "'1' has no running statistics.*train the model with running statistics",
    ),
    "norm behind an activation": (lambda: conv_and(nn.ReLU(), nn.BatchNorm2d(4)), "'2' sits in a Sequential"),
    "group norm": (lambda: conv_and(nn.GroupNorm(2, 4)), "GroupNorm, which cannot be folded"),
    "no norm": (conv_and, "no BatchNorm2d to convert"),
    "a norm alone": (lambda: nn.BatchNorm2d(3), "the model is a BatchNorm2d.*give the network that holds both"),
    "standardised weights": (
        lambda: conv_and(nn.BatchNorm2d(4), kind=ScaledStdConv2d),
        "'0', a ScaledStdConv2d.*replace it by a Conv2d",
    ),
    "computed weight": (
        lambda: nn.Sequential(spectral_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
        "'0', a ParametrizedConv2d",
    ),
    "run twice": (twice, "more than once"),
    "not run": (unused, "does not run other.0"),
    "convolution used elsewhere": (lambda: Branching(3, 4, 3), "also used elsewhere"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_refused(case):
    build, message = REFUSED[case]
    model = build().double().eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        convert(model, "patchnorm", images=pixels())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


BAD_IMAGES = {
    "none": (None, "give images"),
    "one": (pixels(1), "at least two images"),
    "bytes": ((255 * torch.rand(4, 3, 8, 8)).byte(), "floating-point batches.*torch.uint8"),
    "sizes": ([pixels(2), pixels(2, size=8)], "one size"),
    "too few": (pixels(3, size=3), "28 unknowns per output, but the images give 2 positions"),
    "non-finite": (pixels().index_fill(0, torch.tensor([2]), float("nan")), "activations at 'body.0' are non-finite"),
    "non-finite, held out": (pixels().index_fill(0, torch.tensor([7]), float("nan")), "outputs are non-finite"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_images_that_do_not_fit_are_refused(case):
    images, message = BAD_IMAGES[case]
    with pytest.raises(UsageError, match=message):
        convert(settle(Plain(3, 4, 3), pixels()), "patchnorm", images=images, fit="lstsq")


def test_wrongly_normalised_images_are_refused_or_questioned(resnet):
    photographs = pixels() * 0.25 + 0.5
    convert(resnet, "patchnorm", images=pixels(), fit="layer")
    with pytest.raises(UsageError, match="not normalised by mean"):
        convert(resnet, "patchnorm", images=(photographs - 0.5) / 0.1, fit="layer")
    with pytest.warns(UserWarning, match="may not be normalised"):
        convert(resnet, "patchnorm", images=photographs, fit="layer")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(normalizer=torch.zeros(2, 3, 8, 8)), "given by its name, such as 'patchnorm', got Tensor"),
        (dict(fit="best"), "fit must be"),
        (dict(unnormed="keep"), "unnormed must be"),
        (dict(scale="large"), "scale must be"),
        (dict(scale=4), "scale must be 'unit'.*got 4"),
        (dict(normalizer="batchnorm"), "divergence-free one, affinelike.*got 'batchnorm'"),
        (dict(normalizer="patchnorm_ws", fit="channel"), "sum to zero"),
    ],
)
def test_unknown_options_are_named(resnet, options, message):
    with pytest.raises(ValueError, match=message):
        convert(resnet, **{"normalizer": "patchnorm", "images": pixels(), **options})


@pytest.mark.parametrize(
    ("name", "options"),
    [pytest.param("resnet18", {}, marks=pytest.mark.slow), ("resnet10t", dict(output_stride=16))],
    ids=str,
)
def test_backbones_that_return_features_are_converted(name, options):
    images = pixels(8, size=64)
    source = settle(timm.create_model(name, features_only=True, **options), images)
    conversion = convert(source, "patchnorm", images=images, scale=NEARLY_AFFINE, fit="layer")
    assert conversion.layers[0].name in ("conv1", "conv1.0")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in conversion.model.modules())
    for ours, theirs in zip(conversion.model(images), source(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert conversion.agreement is None
    assert conversion.logit_error < 1e-6


def test_norms_that_hold_their_activation_and_padding_that_depends_on_the_size():
    def stage(inputs, outputs):
        return Conv2dSame(inputs, outputs, 3, stride=2, bias=False), BatchNormAct2d(outputs, act_layer=nn.SiLU)

    source = settle(nn.Sequential(*stage(3, 6), *stage(6, 4)), pixels())
    conversion = convert(source, "patchnorm", images=pixels(size=31), scale=NEARLY_AFFINE, fit="lstsq")
    assert [row.name for row in conversion.layers] == ["0", "2"]
    other = pixels(size=29, seed=2)
    torch.testing.assert_close(conversion.model(other), source(other), rtol=0, atol=1e-7)


def test_half_precision_stays_and_is_fitted_in_float64():
    source = settle(Plain(3, 6, 3, groups=3), pixels(size=8))
    conversion = convert(source.bfloat16(), "patchnorm", images=pixels(size=8), scale="rms10", fit="lstsq")
    assert {p.dtype for p in conversion.model.parameters()} == {torch.bfloat16}
    assert conversion.layers[0].predicted_error < 0.02
    assert conversion.logit_error < 0.02 + 8 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("act", [False, True], ids=["plain", "with activation"])
def test_frozen_norms_are_converted_as_detectors_have_them(act):
    norm = BatchNormAct2d(6, act_layer=nn.ReLU) if act else nn.BatchNorm2d(6)
    source = settle(nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.ReLU()), pixels())
    expected = source(pixels(seed=2))
    frozen = freeze_batch_norm_2d(source)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    twin = convert(frozen, "patchnorm", images=pixels(), scale=NEARLY_AFFINE, fit="lstsq").model
    assert isinstance(twin[0], PatchNormConv2d)
    torch.testing.assert_close(twin(pixels(seed=2)), expected, rtol=0, atol=1e-7)


def test_depthwise_layers_and_squeeze_excitation_are_converted():
    images = pixels(8, size=64)
    source = settle(timm.create_model("mobilenetv3_small_050"), images)
    twin = convert(source, "patchnorm", images=images, scale=NEARLY_AFFINE, fit="layer").model
    assert not any(isinstance(module, nn.BatchNorm2d) for module in twin.modules())
    torch.testing.assert_close(twin(images), source(images), rtol=0, atol=1e-7)
