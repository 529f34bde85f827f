"""Activations of RMS 1 where the network's function allows it, and the network unchanged."""

import copy

import pytest
import timm
import torch
from batch_normed import Plain, pixels, settle
from torch import nn
from torch.nn import functional as F

from affnorm_zoo import convert
from affnorm_zoo.conversion.balance import Groups, balance
from affnorm_zoo.conversion.prepare import prepare
from affnorm_zoo.registry import get_normalizer


def channels_first(count=6, size=8):
    return torch.randn(count, 3, size, size, dtype=torch.float64)


class Wired(nn.Module):
    """Convolutions a, b, c and a classifier, wired by a function of these and of the input."""

    def __init__(self, forward):
        super().__init__()
        self.wiring = forward
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.fc = nn.Linear(3, 5)
        self.double()

    def forward(self, x):
        return self.wiring(self, x)


def wire(function):
    torch.manual_seed(0)
    return Wired(function)


def groups_of(network, names="abc"):
    groups = Groups({name: network.get_submodule(name) for name in names})
    groups.run(network, channels_first())
    return groups


SCALABLE = {
    "relu": lambda m, x: m.fc(m.c(F.relu(m.b(F.leaky_relu(m.a(x))))).mean((2, 3))),
    "residual": lambda m, x: m.fc(m.c(F.relu(m.a(x) + m.b(F.relu(m.a(x))))).mean((2, 3))),
    "pooled": lambda m, x: m.fc(F.adaptive_avg_pool2d(m.c(F.max_pool2d(m.b(0.5 * m.a(x)), 2)), 1).flatten(1)),
    "twice": lambda m, x: m.fc(m.c(m.b(F.relu(m.b(m.a(x))))).mean((2, 3))),
}


@pytest.mark.parametrize("name", SCALABLE)
def test_the_function_stays_and_inputs_have_rms_one(name):
    network = wire(SCALABLE[name])
    with torch.no_grad():
        network.a.weight.mul_(40)
        network.b.weight.mul_(0.02)
    x, before = channels_first(), copy.deepcopy(network)
    balance(network, copy.deepcopy(network), {"a", "b", "c"}, x)
    torch.testing.assert_close(network(x), before(x), rtol=1e-12, atol=1e-12)
    groups = Groups(dict(network.named_children()))
    groups.run(network, x)
    for group in {groups.read["b"], groups.read["c"]}:
        squares = [groups.squares[name] for name in "bc" if groups.read[name] == group]
        if name != "twice":  # a layer's mean square is that of its last call
            assert sum(squares) / len(squares) == pytest.approx(1)
    assert not torch.equal(network.a.weight, before.a.weight)


FIXED = {
    "sigmoid": lambda m, x: m.fc(m.b(m.a(x).sigmoid() * m.a(x)).mean((2, 3))),
    "relu6": lambda m, x: m.fc(m.b(F.relu6(m.a(x))).mean((2, 3))),
    "constant": lambda m, x: m.fc(m.b(m.a(x) + 1).mean((2, 3))),
    "input": lambda m, x: m.fc(m.b(m.a(x) + x).mean((2, 3))),
    "product": lambda m, x: m.fc(m.b(m.a(x) * m.a(x)).mean((2, 3))),
    "returned": lambda m, x: [y := m.a(x), m.b(y)],
}


@pytest.mark.parametrize("name", FIXED)
def test_what_is_not_homogeneous_or_seen_from_outside_keeps_its_scale(name):
    network = wire(FIXED[name])
    groups = groups_of(network)
    assert groups.written["a"] == groups.read["b"] == 0
    before = copy.deepcopy(network)
    balance(network, copy.deepcopy(network), {"a", "b", "c"}, channels_first())
    for layer in ("a", "b"):
        torch.testing.assert_close(network.get_submodule(layer).weight, before.get_submodule(layer).weight)


def test_what_is_added_or_joined_has_one_scale():
    added = groups_of(wire(lambda m, x: m.c(m.a(x) + F.relu(m.b(x)))))
    assert added.written["a"] == added.written["b"] == added.read["c"] != 0
    apart = groups_of(wire(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x)))))))
    assert len({apart.written["a"], apart.written["b"], apart.written["c"]}) == 3
    assert apart.written["c"] == 0
    joined = groups_of(wire(lambda m, x: m.c(torch.cat((m.a(x)[:, :1], m.b(x)[:, :2]), 1))))
    assert joined.written["a"] == joined.written["b"] == joined.read["c"] != 0


def test_layers_that_share_parameters_are_left():
    network = wire(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))))
    network.b.weight = network.a.weight
    before = copy.deepcopy(network)
    balance(network, copy.deepcopy(network), {"a", "b", "c"}, channels_first())
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before.parameters(), strict=True))


@torch.jit.script
def scripted(x: torch.Tensor) -> torch.Tensor:
    return x.tanh()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_followed_leaves_the_network_as_it_was():
    network = wire(lambda m, x: m.fc((m.c(y := F.relu(m.a(x))) + scripted(y)).mean((2, 3))))
    x, before = channels_first(), copy.deepcopy(network)
    balance(network, copy.deepcopy(network), {"a", "b", "c"}, x)
    torch.testing.assert_close(network(x), before(x), rtol=1e-12, atol=1e-12)


def test_an_activation_of_zeros_keeps_its_scale():
    network = wire(lambda m, x: m.fc(m.b(F.relu(m.a(x))).mean((2, 3))))
    with torch.no_grad():
        network.a.weight.zero_()
        network.a.bias.fill_(-1.0)
    before = copy.deepcopy(network)
    balance(network, copy.deepcopy(network), {"a", "b"}, channels_first())
    assert torch.equal(network.a.bias, before.a.bias)


@pytest.mark.parametrize("name", ["resnet26d", "regnety_002", "mobilenetv3_small_050", "tf_efficientnet_lite0"])
def test_networks_of_every_kind_keep_their_outputs(name):
    images = pixels(count=4, size=64)
    prepared = prepare(settle(timm.create_model(name, num_classes=7), images), get_normalizer("patchnorm"))
    network, fitted = prepared.reference, {binding.layers[0] for binding in prepared.bindings}
    with torch.no_grad():
        before = network(images)
        balance(network, copy.deepcopy(prepared.slotted), fitted, images)
        torch.testing.assert_close(network(images), before, rtol=0, atol=1e-10 * before.abs().max().item())
        groups = Groups({name: network.get_submodule(name) for name in fitted})
        groups.run(network, images)
    scaled = set(groups.read.values()) - {0}
    assert len(scaled) > 3
    for group in scaled:
        squares = [groups.squares[name] for name in fitted if groups.read[name] == group]
        assert sum(squares) / len(squares) == pytest.approx(1)


def test_a_large_stream_is_normalised_no_more_than_one_of_rms_one():
    """κ = 4√n has a share of 1/17 at RMS 1, and before scaling one of 0.6 at RMS 5."""
    images = pixels()
    torch.manual_seed(0)
    body = [Plain(3, 8, 3, padding=1), Plain(8, 8, 3, padding=1), Plain(8, 6, 3, padding=1)]
    network = settle(nn.Sequential(*body), images)
    for block in network[:2]:
        norm = block.body[1]
        with torch.no_grad():
            norm.weight.fill_(5.0)
    shares = [row.share for row in convert(network, "patchnorm", images=images, scale="rms4").layers]
    assert shares[1:] == pytest.approx([1 / 17, 1 / 17], rel=0.2)  # the padding lowers it
