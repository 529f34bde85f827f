"""What networks start as, by method."""

import copy

import pytest
import timm
import torch
from torch import nn

from affnorm_zoo.studies.methods import METHODS, build_start, set_training_mode


def source(name="resnet20_cifar_batchnorm"):
    """A network whose batch norms have statistics, γ and β of any values."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def norms(model, kind):
    return [module for module in model.modules() if isinstance(module, kind)]


@pytest.mark.parametrize("name", ["resnet20_cifar_batchnorm", "tf_efficientnet_lite0"])
def test_folding_keeps_the_function_and_no_norm(name):
    model = source(name).double()
    folded = build_start("folded", model, [])
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert not norms(folded, nn.BatchNorm2d)
    torch.testing.assert_close(folded(images), model(images), rtol=1e-8, atol=1e-8)
    assert norms(model, nn.BatchNorm2d), "the source must stay as it is"


@pytest.mark.parametrize("name", ["resnet20_cifar_batchnorm", "tf_efficientnet_lite0"])
def test_group_norm_takes_every_place_with_the_gains_and_the_activation(name):
    model = source(name)
    grouped = build_start("groupnorm", model, [])
    theirs, ours = norms(model, nn.BatchNorm2d), norms(grouped, nn.GroupNorm)
    assert len(theirs) == len(ours)
    assert not norms(grouped, nn.BatchNorm2d)
    for batch, group in zip(theirs, ours, strict=True):
        assert group.num_channels // group.num_groups == 8
        assert torch.equal(batch.weight, group.weight)
        assert torch.equal(batch.bias, group.bias)
    assert len(norms(grouped, nn.ReLU6)) == len(norms(model, nn.ReLU6))


def test_frozen_statistics_stay_and_gains_train():
    model = build_start("frozen", source(), [])
    before = copy.deepcopy(model)
    set_training_mode(model, "frozen")
    model(torch.randn(4, 3, 32, 32)).square().mean().backward()
    for old, new in zip(norms(before, nn.BatchNorm2d), norms(model, nn.BatchNorm2d), strict=True):
        assert torch.equal(old.running_mean, new.running_mean)
        assert torch.equal(old.running_var, new.running_var)
        assert new.weight.grad is not None
    set_training_mode(model, "batchnorm")
    model(torch.randn(4, 3, 32, 32))
    assert not torch.equal(before.bn1.running_mean, model.bn1.running_mean)


@pytest.mark.parametrize("method", [name for name in METHODS if name.startswith("patchnorm")])
def test_a_twin_has_the_kappa_of_its_name(method):
    model = source()
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(-1, 1, 1) for name in ("mean", "std"))
    twin = build_start(method, model, [(torch.rand(32, 3, 32, 32) - mean) / std])
    factor = 4 if method.endswith("4") else 1
    assert twin.conv1.kappa == pytest.approx(factor * 27**0.5)
