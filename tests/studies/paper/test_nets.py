"""The compared nets differ in their maps and in nothing else."""

import math

import pytest
import torch
from torch import nn

from affnorm_zoo.errors import UsageError
from affnorm_zoo.layers import affine_layers
from affnorm_zoo.studies.paper.nets import METHODS, build_net, scale_outputs

DENSE = [
    "none",
    "batchnorm",
    "layernorm",
    "rmsnorm",
    "norm_like",
    "norm_like_half",
    "affine_like",
    "affine_like_rms",
    "kappa=0",
    "kappa=3",
]
CONV = [method for method in METHODS if method.startswith("patch")] + ["none", "batchnorm", "layernorm", "rmsnorm"]
SHAPE = (3, 8, 8)


@pytest.mark.parametrize(
    ("name", "method"),
    [("tanh-3x16", method) for method in DENSE] + [("leaky_relu-4-6-k3-pool", method) for method in CONV],
)
def test_a_seed_gives_every_method_the_same_weights(name, method):
    ours, plain = (build_net(name, m, SHAPE, 10, seed=3) for m in (method, "none"))
    weights = [[p for p in net.parameters() if p.ndim > 1] for net in (ours, plain)]
    assert len(weights[0]) == len(weights[1]) == (4 if "x" in name else 3)
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert ours(torch.randn(5, *SHAPE)).shape == (5, 10)
    others = [p for p in ours.parameters() if p.ndim == 1 and p.any()]
    assert not others or "gain" in method or "ws" in method  # no parameters but weights, and biases of zero


@pytest.mark.parametrize(("name", "layers"), [("tanh-1x512", 2), ("leaky_relu-3x512", 6)])
def test_plain_nets_keep_the_second_moment(name, layers):
    torch.manual_seed(0)
    net = build_net(name, "none", (3, 16, 16), 10, seed=0)
    z = net[:layers](torch.randn(256, 3, 16, 16))
    # the relative variance of a mean of squares: 2/512 a layer and 2/512 over the rows
    assert z.square().mean().item() == pytest.approx(1, abs=4 * (2 * layers / 512) ** 0.5)


def test_batch_norm_is_batch_norm_of_the_layers_input():
    net = build_net("tanh-1x4", "batchnorm", (1, 2, 3), 2, seed=0).train()
    x = torch.randn(50, 1, 2, 3)
    standardised = (x - x.mean(0)) / x.std(0, correction=0)
    linear = net[1][1]
    torch.testing.assert_close(net[1](x.flatten(1)), linear(standardised.flatten(1)), rtol=1e-3, atol=1e-3)


def test_kappa_zero_is_norm_like_and_a_large_one_the_affine_map():
    x = torch.randn(6, *SHAPE)
    plain = build_net("tanh-2x8", "none", SHAPE, 4, seed=1)
    torch.testing.assert_close(build_net("tanh-2x8", "kappa=1e6", SHAPE, 4, seed=1)(x), plain(x), rtol=1e-4, atol=1e-4)
    first = build_net("tanh-2x8", "kappa=0", SHAPE, 4, seed=1)[:2]
    torch.testing.assert_close(first(x), first(7 * x))
    assert first[1].bias is None


@pytest.mark.parametrize("method", DENSE)
@pytest.mark.parametrize("name", ["tanh-3x16", "leaky_relu-6x8"])
def test_a_start_with_unit_outputs_has_them_in_every_layer(name, method):
    """And its weights are those of the usual start, up to one factor per layer."""
    torch.manual_seed(0)
    x = torch.randn(200, *SHAPE) + 0.3
    usual, scaled = (build_net(name, method, SHAPE, 10, seed=3, map_classifier=True) for _ in range(2))
    scale_outputs(scaled, x)
    outputs = []
    for _, layer in affine_layers(scaled):
        layer.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    scaled.train()(x)
    assert len(outputs) == int(name.rpartition("-")[2].partition("x")[0]) + 1
    for output in outputs:
        assert output.square().mean().sqrt().item() == pytest.approx(1, abs=1e-5)
    for (_, before), (_, after) in zip(affine_layers(usual), affine_layers(scaled), strict=True):
        factors = after.weight / before.weight
        torch.testing.assert_close(factors, factors.mean().expand_as(factors), rtol=1e-5, atol=0)
        assert not after.bias.any() if after.bias is not None else method == "kappa=0"


def test_a_start_leaves_no_statistics_behind():
    net = build_net("tanh-2x8", "batchnorm", SHAPE, 4, seed=1)
    scale_outputs(net, torch.randn(50, *SHAPE))
    fresh = build_net("tanh-2x8", "batchnorm", SHAPE, 4, seed=1)
    for ours, theirs in zip(net.buffers(), fresh.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_standardised_weights_have_no_start_with_unit_outputs():
    net = build_net("tanh-4-k3-pool", "patchnorm_rms_ws", SHAPE, 4, seed=1)
    with pytest.raises(UsageError, match="not for standardised weights; use fan_in"):
        scale_outputs(net, torch.randn(5, *SHAPE))


@pytest.mark.parametrize("method", ["none", "batchnorm", "affine_like", "kappa=0"])
def test_the_classifier_takes_the_method_where_it_is_told_to(method):
    plain, mapped = (
        [type(m) for _, m in affine_layers(build_net("tanh-2x8", method, SHAPE, 4, 1, map_classifier=m))]
        for m in (False, True)
    )
    assert plain[-1] is nn.Linear
    assert mapped == [plain[0]] * 3
    with pytest.raises(UsageError, match="map_classifier is for dense networks"):
        build_net("tanh-4-k3-pool", "patchnorm", SHAPE, 4, 1, map_classifier=True)


def test_stages_halve_the_rows():
    for name in ("tanh-4-6-8-k5-stride", "tanh-4-6-8-k5-pool"):
        net = build_net(name, "none", (3, 16, 16), 10, seed=0)
        x, sizes = torch.randn(1, 3, 16, 16), []
        for module in net[:-3]:
            x = module(x)
            sizes += [x.shape[-1]] if isinstance(module, nn.Conv2d) else []
        assert sizes == [16, 8, 4]


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("resnet18", "none", "must read like"),
        ("relu-2x4", "none", "activation must be one of tanh, leaky_relu"),
        ("tanh-2x4", "patchnorm", "method must be one of"),
        ("tanh-4-k3-pool", "affine_like", "method must be one of"),
    ],
)
def test_what_is_not_known_is_named(name, method, message):
    with pytest.raises(UsageError, match=message):
        build_net(name, method, SHAPE, 10, seed=0)


def test_rms_scale_is_rms_norm_before_a_linear_layer():
    """Worth knowing where the two are compared: norm_like in RMS units is RMS norm, its eps aside."""
    from affnorm_zoo.layers import NormLikeLinear

    net = build_net("tanh-1x8", "rmsnorm", SHAPE, 4, seed=1)
    linear = net[1][1]
    ours = NormLikeLinear(linear.in_features, 8, scale=(math.sqrt(linear.in_features), 0.0))
    ours.load_state_dict(linear.state_dict())
    x = torch.randn(5, linear.in_features)
    torch.testing.assert_close(net[1](x), ours(x), rtol=1e-4, atol=1e-5)
