import copy

import pytest
import timm
import torch
from definitions import unfolded_patch_norm
from timm.layers import BatchNormAct2d, Conv2dSame, ScaledStdConv2d, freeze_batch_norm_2d
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from affnorm_zoo import PatchNormConv2d, convert
from affnorm_zoo.errors import UsageError

NEARLY_AFFINE = (1e6, 1e6)
EVEN = dict(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def pixels(count=24, size=32, seed=0):
    """Images of blobs from 0 to 1, normalised for EVEN, in float64."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator, dtype=torch.float64)
    return (F.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1) - 0.5) / 0.25


def settle(model, images, seed=0):
    """Give the norms of a model statistics that fit, and random gains and shifts; float64, evaluation mode."""
    torch.manual_seed(seed)
    model = model.double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.momentum = None
    model.train()(images)
    if hasattr(model, "pretrained_cfg"):
        model.pretrained_cfg.update(EVEN)
    return model.eval()


@pytest.fixture(scope="module")
def source():
    return settle(timm.create_model("resnet20_cifar_batchnorm"), pixels(seed=1))


class Plain(nn.Module):
    """A network of one convolution with its norm."""

    def __init__(self, *args, **kwargs):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(*args, **kwargs), nn.BatchNorm2d(args[1]))

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize("fit", ["layer", "channel", "lstsq"])
def test_with_a_large_kappa_the_twin_is_the_network(source, fit):
    twin = convert(source, "patchnorm", images=pixels(), scale=NEARLY_AFFINE, fit=fit).model
    other = pixels(seed=2)
    torch.testing.assert_close(twin(other), source(other), rtol=0, atol=1e-7)  # of the order of n ρ² / κ²


GEOMETRIES = [
    dict(stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1),
    dict(stride=(2, 2), padding=(1, 1), dilation=(1, 1), groups=1),
    dict(stride=(1, 1), padding=(2, 2), dilation=(2, 2), groups=3),
    dict(stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=3),
]


@pytest.mark.parametrize(("name", "scale"), [("patchnorm", "rms"), ("patchnorm", "rms10"), ("patchnorm_l2", "rms")])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_lstsq_minimises_squares_and_ridge_of_the_layers_definition(name, scale, geometry):
    images = pixels(size=8)
    model = settle(Plain(3, 6, 3, **geometry), images)
    conversion = convert(model, name, images=images, scale=scale, fit="lstsq")
    layer, fitted = conversion.model.body[0], images[torch.arange(24) % 8 != 7]
    norm_like, kappa = name == "patchnorm_l2", layer.kappa

    def outputs(theta):
        weight, shift = theta[:, :-1].reshape(layer.weight.shape), theta[:, -1]
        bias = shift if norm_like else shift / kappa
        return unfolded_patch_norm(fitted, weight, bias, **geometry, norm_like=norm_like, c=layer.c, kappa=kappa)

    norm = model.body[1]
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    folded = (model.body[0].weight * factor[:, None, None, None]).flatten(1)
    shift = norm.bias + factor * (model.body[0].bias - norm.running_mean)
    lengths = patch_lengths(fitted, layer, geometry).mean(1, keepdim=True) / layer.c
    prior = torch.cat((lengths * folded, (1 if norm_like else lengths) * shift[:, None]), dim=1).detach()

    theta = torch.cat((layer.weight.flatten(1), (layer.bias * (1 if norm_like else kappa))[:, None]), dim=1).detach()
    # a column of features per unknown: the outputs are linear in them
    columns = [outputs(unit.expand(6, -1)) for unit in torch.eye(theta.shape[1], dtype=torch.float64)]
    features = torch.stack(columns, dim=-1).movedim(1, 0).flatten(1, -2)  # (6, positions, unknowns)
    ridge = 1e-4 * features.square().sum(1).mean(1)
    targets = model(fitted).detach()

    def objective(theta):
        residual = (outputs(theta) - targets).movedim(1, 0).flatten(1)
        return (residual.square().sum(1) + ridge * (theta - prior).square().sum(1)).sum()

    at_solution, at_prior = (torch.func.grad(objective)(point).norm() for point in (theta, prior))
    assert at_solution < 1e-8 * at_prior
    error = (outputs(theta) - targets).norm() / targets.norm()
    assert conversion.layers[0].predicted_error == pytest.approx(error.item(), rel=1e-6)


def patch_lengths(x, layer, geometry):
    """√(‖x_p‖² + κ²) of every output channel: (channels, positions)."""
    ones = torch.ones_like(layer.weight).detach()
    kappa = 0.0 if layer.norm_like else layer.kappa
    return (F.conv2d(x.square(), ones, None, **geometry) + kappa**2).sqrt().movedim(1, 0).flatten(1)


def test_more_unknowns_fit_better(source):
    fits = ("layer", "channel", "lstsq")
    first = [convert(source, "patchnorm", images=pixels(), scale="rms", fit=fit).layers[0] for fit in fits]
    assert [row.name for row in first] == ["conv1"] * 3
    assert first[0].predicted_error > first[1].predicted_error > first[2].predicted_error > 0


def test_where_positions_abound_a_part_of_them_is_enough():
    images = pixels(size=48)
    source = settle(Plain(3, 6, 3), images)
    conversions = [convert(source, "patchnorm", images=images, scale="rms", fit="lstsq") for _ in range(2)]
    assert torch.equal(*(conversion.model.body[0].weight for conversion in conversions))
    fitted = images[torch.arange(24) % 8 != 7]
    targets = source(fitted)
    assert targets[:, 0].numel() == 21 * 46**2 > 2**14
    error = ((conversions[0].model(fitted) - targets).norm() / targets.norm()).item()
    # 2¹⁴ positions tell the error of all 44,436 to some 1/√2¹⁴
    assert conversions[0].layers[0].predicted_error == pytest.approx(error, rel=0.03)
    assert conversions[0].layers[0].predicted_error != pytest.approx(error, rel=1e-9)


def test_the_default_fit_depends_on_kappa(source):
    for scale, fit in (("rms", "lstsq"), ("rms3.9", "lstsq"), ("rms4", "channel"), ("rms10", "channel")):
        assert convert(source, "patchnorm", images=pixels(), scale=scale).layers[0].fit == fit


def test_measured_errors_are_those_of_the_twin_on_held_out_images(source):
    images = pixels()
    conversion = convert(source, "patchnorm", images=[(part, None) for part in images.split(5)], scale="rms")
    held_out = images[7::8]
    twin, logits = conversion.model(held_out), source(held_out)
    assert (conversion.num_images, conversion.num_held_out) == (21, 3)
    assert conversion.logit_error == pytest.approx(((twin - logits).norm() / logits.norm()).item(), rel=1e-6)
    assert conversion.agreement == (twin.argmax(1) == logits.argmax(1)).double().mean()
    first = conversion.layers[0]
    outputs, targets = conversion.model.conv1(held_out), source.act1(source.bn1(source.conv1(held_out)))
    assert first.measured_error > 0
    assert (outputs - targets).norm() / targets.norm() < 3 * first.measured_error
    lengths = F.avg_pool2d(images[torch.arange(24) % 8 != 7].square().sum(1, keepdim=True), 3, 1, 1) * 9
    assert first.rms_over_kappa == pytest.approx(lengths.mean().sqrt().item() / first.kappa)
    assert first.share == pytest.approx(1 / (1 + first.kappa**2 / lengths.mean().item()))
    s = (lengths + first.kappa**2).sqrt()
    assert first.spread == pytest.approx((s.std(correction=0) / s.mean()).item())


@pytest.mark.parametrize("scale", ["rms", "rms4", "rms10"])
def test_the_twin_loads_under_the_zoos_name(source, scale):
    conversion = convert(source, "patchnorm", images=pixels(), scale=scale)
    assert conversion.name == conversion.model.pretrained_cfg["architecture"] == "resnet20_cifar_patchnorm"
    built = timm.create_model(conversion.name, norm_scale=scale).double().eval()
    built.load_state_dict(conversion.model.state_dict())
    assert torch.equal(built(pixels(seed=3)), conversion.model(pixels(seed=3)))


def test_timms_own_network_gets_the_zoos_name_too():
    source = settle(timm.create_model("resnet18", num_classes=5), pixels())
    conversion = convert(source, "patchnorm", images=pixels(), fit="channel")
    assert conversion.name == "resnet18_patchnorm"
    built = timm.create_model(conversion.name, norm_scale="rms4", num_classes=5).double().eval()
    built.load_state_dict(conversion.model.state_dict())
    assert torch.equal(built(pixels()), conversion.model(pixels()))


def test_a_scale_of_its_own_for_the_stem_has_no_name(source):
    conversion = convert(source, "patchnorm", images=pixels(), stem_scale="rms")
    assert conversion.name == ""
    assert conversion.model.pretrained_cfg["architecture"] == "resnet20_cifar_batchnorm"
    kappas = [row.kappa / row.c for row in conversion.layers]
    assert kappas[0] == pytest.approx(1)
    assert kappas[1:] == pytest.approx([4] * (len(kappas) - 1))


def test_the_source_stays_as_it_is_and_modes_are_kept(source):
    source = copy.deepcopy(source).train()
    source.layer1.eval()
    source.conv1.weight.requires_grad_(False)
    before = copy.deepcopy(source.state_dict())
    modes = {name: module.training for name, module in source.named_modules()}
    twin = convert(source, "patchnorm", images=pixels()).model
    assert {name: module.training for name, module in source.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())
    assert {p.data_ptr() for p in source.parameters()}.isdisjoint({p.data_ptr() for p in twin.parameters()})
    assert twin.training
    assert not twin.layer1[0].conv1.training
    assert [name for name, p in twin.named_parameters() if not p.requires_grad] == ["conv1.weight", "conv1.bias"]
    assert twin.conv1.weight.dtype == torch.float64
    assert isinstance(twin.layer1[0].conv1, PatchNormConv2d)
    assert twin.layer1[0].conv1.activation == "relu"


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
    "bytes": ((255 * torch.rand(4, 3, 8, 8)).byte(), "batches"),
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


def test_wrongly_normalised_images_are_refused_or_questioned(source):
    photographs = pixels() * 0.25 + 0.5
    convert(source, "patchnorm", images=pixels(), fit="layer")
    with pytest.raises(UsageError, match="not normalised by mean"):
        convert(source, "patchnorm", images=(photographs - 0.5) / 0.1, fit="layer")
    with pytest.warns(UserWarning, match="may not be normalised"):
        convert(source, "patchnorm", images=photographs, fit="layer")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(fit="best"), "fit must be"),
        (dict(unnormed="keep"), "unnormed must be"),
        (dict(scale="large"), "scale must be"),
        (dict(normalizer="batchnorm"), "divergence-free one, affinelike.*got 'batchnorm'"),
        (dict(normalizer="patchnorm_ws", fit="channel"), "sum to zero"),
    ],
)
def test_unknown_options_are_named(source, options, message):
    with pytest.raises(ValueError, match=message):
        convert(source, **{"normalizer": "patchnorm", "images": pixels(), **options})


def test_standardised_kernels_compute_what_was_fitted():
    source = settle(Plain(3, 6, 3), pixels(size=8))
    conversion = convert(source, "patchnorm_ws", images=pixels(size=8), scale="rms")
    assert "cannot see the mean of their input" in conversion.notes[0]
    layer = conversion.model.body[0]
    kernels = layer.effective_weight().flatten(1)
    torch.testing.assert_close(kernels.sum(1), torch.zeros(6, dtype=torch.float64))
    fitted = pixels(size=8)[torch.arange(24) % 8 != 7]
    error = (layer(fitted) - source(fitted)).norm() / source(fitted).norm()
    assert conversion.layers[0].predicted_error == pytest.approx(error.item(), rel=1e-6)


def test_a_conversion_prints_a_table(source):
    lines = str(convert(source, "patchnorm", images=pixels(), scale="rms")).splitlines()
    assert lines[0] == "patchnorm, loads as resnet20_cifar_patchnorm"
    assert lines[1].split() == ["layer", "fit", "c", "κ", "RMS/κ", "share", "spread", "predicted", "measured"]
    assert [line.split()[0] for line in lines[2:5]] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert lines[-2] == "fitted with 21 images"
    assert lines[-1].startswith("on 3 other images: output error ")


@pytest.mark.parametrize(("name", "options"), [("resnet18", {}), ("resnet10t", dict(output_stride=16))], ids=str)
def test_backbones_that_return_features_are_converted(name, options):
    source = settle(timm.create_model(name, features_only=True, **options), pixels(size=64))
    conversion = convert(source, "patchnorm", images=pixels(size=64), scale=NEARLY_AFFINE, fit="layer")
    assert conversion.layers[0].name in ("conv1", "conv1.0")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in conversion.model.modules())
    for ours, theirs in zip(conversion.model(pixels(size=64)), source(pixels(size=64)), strict=True):
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
