"""What a conversion fits, and what it says of its twin."""

import copy

import pytest
import timm
import torch
from batch_normed import NEARLY_AFFINE, Plain, pixels, settle
from definitions import unfolded_patch_norm
from torch.nn import functional as F

from affnorm_zoo import PatchNormConv2d, convert


@pytest.mark.parametrize("fit", ["layer", "channel", "lstsq"])
def test_with_a_large_kappa_the_twin_is_the_network(resnet, fit):
    twin = convert(resnet, "patchnorm", images=pixels(), scale=NEARLY_AFFINE, fit=fit).model
    other = pixels(seed=2)
    torch.testing.assert_close(twin(other), resnet(other), rtol=0, atol=1e-7)  # of the order of n ρ² / κ²


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


def test_more_unknowns_fit_better():
    network, fits = settle(Plain(3, 6, 3), pixels(seed=1)), ("layer", "channel", "lstsq")
    rows = [convert(network, "patchnorm", images=pixels(), scale="rms", fit=fit).layers[0] for fit in fits]
    assert rows[0].predicted_error > rows[1].predicted_error > rows[2].predicted_error > 0


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


def test_the_default_fit_depends_on_kappa_and_the_number_of_weights():
    network = settle(Plain(3, 6, 5), pixels(seed=1))
    for scale, fit in (("rms", "lstsq"), ("rms3.9", "lstsq"), ("rms4", "channel"), ("rms10", "channel")):
        assert convert(network, "patchnorm", images=pixels(), scale=scale).layers[0].fit == fit
    small = settle(Plain(3, 6, 3, groups=3), pixels(seed=1))
    assert convert(small, "patchnorm", images=pixels(), scale="rms10").layers[0].fit == "lstsq"
    few = pixels(count=8, size=11)  # 7 images that fit, of 81 positions
    assert convert(small, "patchnorm", images=few, scale="rms10").layers[0].fit == "channel"


def test_measured_errors_are_those_of_the_twin_on_held_out_images(resnet):
    images = pixels()
    conversion = convert(resnet, "patchnorm", images=[(part, None) for part in images.split(5)], scale="rms")
    held_out = images[7::8]
    twin, logits = conversion.model(held_out), resnet(held_out)
    assert (conversion.num_images, conversion.num_held_out) == (21, 3)
    assert conversion.logit_error == pytest.approx(((twin - logits).norm() / logits.norm()).item(), rel=1e-6)
    assert conversion.agreement == (twin.argmax(1) == logits.argmax(1)).double().mean()
    first = conversion.layers[0]
    outputs, targets = conversion.model.conv1(held_out), resnet.act1(resnet.bn1(resnet.conv1(held_out)))
    targets = targets * (outputs * targets).sum() / targets.square().sum()  # the twin's activations are scaled
    assert first.measured_error > 0
    assert (outputs - targets).norm() / targets.norm() < 3 * first.measured_error
    lengths = F.avg_pool2d(images[torch.arange(24) % 8 != 7].square().sum(1, keepdim=True), 3, 1, 1) * 9
    assert first.rms_over_kappa == pytest.approx(lengths.mean().sqrt().item() / first.kappa)
    assert first.share == pytest.approx(1 / (1 + first.kappa**2 / lengths.mean().item()))
    s = (lengths + first.kappa**2).sqrt()
    assert first.spread == pytest.approx((s.std(correction=0) / s.mean()).item())


@pytest.mark.parametrize("scale", ["rms", "rms4", "rms10"])
def test_the_twin_loads_under_the_zoos_name(resnet, scale):
    conversion = convert(resnet, "patchnorm", images=pixels(), scale=scale)
    assert conversion.name == conversion.model.pretrained_cfg["architecture"] == "resnet20_cifar_patchnorm"
    built = timm.create_model(conversion.name, norm_scale=scale, layers=[1, 1, 1]).double().eval()
    built.load_state_dict(conversion.model.state_dict())
    assert torch.equal(built(pixels(seed=3)), conversion.model(pixels(seed=3)))


def test_timms_own_network_gets_the_zoos_name_too():
    source = settle(timm.create_model("resnet18", num_classes=5), pixels())
    conversion = convert(source, "patchnorm", images=pixels(), fit="channel")
    assert conversion.name == "resnet18_patchnorm"
    built = timm.create_model(conversion.name, norm_scale="rms4", num_classes=5).double().eval()
    built.load_state_dict(conversion.model.state_dict())
    assert torch.equal(built(pixels()), conversion.model(pixels()))


def test_a_scale_of_its_own_for_the_stem_has_no_name(resnet):
    conversion = convert(resnet, "patchnorm", images=pixels(), stem_scale="rms")
    assert conversion.name == ""
    assert conversion.model.pretrained_cfg["architecture"] == "resnet20_cifar_batchnorm"
    kappas = [row.kappa / row.c for row in conversion.layers]
    assert kappas[0] == pytest.approx(1)
    assert kappas[1:] == pytest.approx([4] * (len(kappas) - 1))


def test_the_source_stays_as_it_is_and_modes_are_kept(resnet):
    source = copy.deepcopy(resnet).train()
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


def test_a_conversion_prints_a_table(resnet):
    lines = str(convert(resnet, "patchnorm", images=pixels(), scale="rms")).splitlines()
    assert lines[0] == "patchnorm, loads as resnet20_cifar_patchnorm"
    assert lines[1].split() == ["layer", "fit", "c", "κ", "RMS/κ", "share", "spread", "predicted", "measured"]
    assert [line.split()[0] for line in lines[2:5]] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert lines[-2] == "fitted with 21 images"
    assert lines[-1].startswith("on 3 other images: output error ")
