"""A bias that the map multiplies by κ gets the rate divided by it, whatever else sets rates."""

import pytest
import timm

from affnorm_zoo import AffineLikeLinear, PatchNormConv2d
from affnorm_zoo.config import OptimConfig
from affnorm_zoo.training.builders import build_optimizer, build_schedule


def rates(model, **settings):
    """The learning rate of every parameter by name, and the optimiser, after the first step of a constant schedule."""
    config = OptimConfig(lr=1e-2, schedule="constant", warmup_epochs=0, **settings)
    optimizer = build_optimizer(config, model, 64)
    schedule = build_schedule(config, optimizer, epochs=2, updates_per_epoch=3)
    schedule.step_update(1)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = [(names[parameter], group["lr"]) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(found) == len(dict(found)) == len(names)  # each once
    return dict(found), optimizer


@pytest.mark.parametrize("name", ["resnet20_cifar_patchnorm_ws", "vit_nano_patch4_32_affinelike"])
@pytest.mark.parametrize("optim", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("layer_decay", [None, 0.7])
def test_only_the_inner_biases_are_divided(name, optim, layer_decay):
    model = timm.create_model(name)
    plain, _ = rates(model, name=optim, layer_decay=layer_decay)
    divided, optimizer = rates(model, name=optim, layer_decay=layer_decay, bias_over_kappa=True)
    kappas = {
        f"{path}.bias": layer.kappa
        for path, layer in model.named_modules()
        if isinstance(layer, AffineLikeLinear | PatchNormConv2d) and layer.bias is not None
    }
    assert len(kappas) > 10
    for parameter, rate in plain.items():
        assert divided[parameter] == pytest.approx(rate / kappas.get(parameter, 1.0), rel=1e-12), parameter
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {decays[layer.bias] for layer in model.modules() if isinstance(layer, PatchNormConv2d)} <= {0.0}


@pytest.mark.parametrize(
    "name", ["resnet20_cifar_patchnorm_l2", "vit_nano_patch4_32_normlike", "resnet20_cifar_batchnorm"]
)
def test_a_bias_outside_the_quotient_is_left_alone(name):
    model = timm.create_model(name)
    assert rates(model, bias_over_kappa=True)[0] == rates(model)[0]
