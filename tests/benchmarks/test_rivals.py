"""The rivals of the benchmark compute what they stand for, and keep what they say."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from affnorm_zoo.benchmarks.networks import Bench
from affnorm_zoo.benchmarks.rivals import RIVALS, InPlaceABN, SharedLayerNorm
from affnorm_zoo.cli.benchmark import CONTENDERS
from affnorm_zoo.evaluation.memory import saved_bytes


def gradients(function, x, parameters, g):
    out = function(x)
    return out, *torch.autograd.grad(out, [x, *parameters], g)


def test_in_place_abn_is_batch_norm_and_leaky_relu():
    plain, shared = nn.BatchNorm2d(5).double(), InPlaceABN(5).double()
    with torch.no_grad():
        plain.weight.uniform_(0.5, 2)
        plain.bias.normal_()
    shared.load_state_dict(plain.state_dict())
    x = torch.randn(4, 5, 3, 6, dtype=torch.float64, requires_grad=True)
    g = torch.randn_like(x)
    expected = gradients(lambda x: F.leaky_relu(plain(x), 0.01), x, plain.parameters(), g)
    for ours, theirs in zip(gradients(shared, x, shared.parameters(), g), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(shared.running_var, plain.running_var)
    torch.testing.assert_close(shared.eval()(x), F.leaky_relu(plain.eval()(x), 0.01))


def test_memory_sharing_layer_norm_is_layer_norm():
    x = torch.randn(4, 7, 6, dtype=torch.float64, requires_grad=True)
    g = torch.randn_like(x)
    expected = gradients(lambda x: F.layer_norm(x, (6,), eps=1e-5), x, (), g)
    for ours, theirs in zip(gradients(SharedLayerNorm(1e-5), x, (), g), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "architecture", [pytest.param(n, marks=pytest.mark.slow if n == "resnet50" else []) for n in CONTENDERS]
)
def test_rivals_train_and_keep_less_than_the_standard_network(architecture):
    size = 224 if architecture.startswith("vit") else 64
    bench = Bench(architecture, 2, size, torch.device("cpu"), "float32", rounds=1)
    standard = saved_bytes(timm.create_model(architecture), bench.images)
    rivals = [name for name in CONTENDERS[architecture] if name in RIVALS]
    assert len(rivals) == 2
    for name in rivals:
        model = bench.model(name).train()
        assert saved_bytes(model, bench.images) < 0.95 * standard, name
        bench.train_step(model)()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters()), name
