"""One function of another package, which edits each nn.Conv2d, is given a stand-in for a layer; nothing else is."""

import types

import pytest
import torch
from torch import nn

from affnorm_zoo import PatchNormConv2d, PatchNormConv2dSame

MODULE, FUNCTION = "segmentation_models_pytorch.encoders._utils", "replace_strides_with_dilation"
EDITS = """
def replace_strides_with_dilation(module, rate):
    for mod in module.modules():
        if isinstance(mod, nn.Conv2d):
            mod.stride = (1, 1)
            mod.dilation = (rate, rate)
            kh, kw = mod.kernel_size
            mod.padding = ((kh // 2) * rate, (kh // 2) * rate)
            if hasattr(mod, "static_padding"):
                mod.static_padding = nn.Identity()
"""
COLLECTS = """
def replace_strides_with_dilation(module, found):
    for mod in module.modules():
        if isinstance(mod, nn.Conv2d):
            {}
"""


def define(source, module=MODULE, function=FUNCTION):
    """A function as another package would define it."""
    namespace = types.ModuleType(module).__dict__ | {"nn": nn, "collect": lambda mod, found: found.append(mod)}
    exec(source.replace(FUNCTION, function), namespace)
    return namespace[function]


@pytest.mark.parametrize("kind", [PatchNormConv2d, PatchNormConv2dSame])
@pytest.mark.parametrize("wrap", [lambda layer: layer, lambda layer: nn.Sequential(nn.ReLU(), nn.Sequential(layer))])
def test_the_function_edits_a_layer_as_it_edits_a_convolution(kind, wrap):
    layer, twin = wrap(kind(3, 4, 3, stride=2, padding=1)), wrap(nn.Conv2d(3, 4, 3, stride=2, padding=1))
    edit = define(EDITS)
    edit(layer, 2)
    edit(twin, 2)
    (ours,) = (module for module in layer.modules() if isinstance(module, kind))
    (theirs,) = (module for module in twin.modules() if isinstance(module, nn.Conv2d))
    for name in ("stride", "dilation", "padding", "kernel_size"):
        assert getattr(ours, name) == getattr(theirs, name)
    x = torch.randn(1, 3, 9, 9)
    built = kind(3, 4, 3, dilation=2, padding=2)
    built.load_state_dict(ours.state_dict())
    assert torch.equal(ours(x), built(x))
    assert layer(x).shape == twin(x).shape


@pytest.mark.parametrize(
    ("source", "module", "function"),
    [
        (EDITS, MODULE, "another_function"),
        (EDITS, "another.module", FUNCTION),
        (EDITS.replace("module.modules()", "list(module.children())"), MODULE, FUNCTION),
        (EDITS.replace("module.modules()", "(m for m in module.modules())"), MODULE, FUNCTION),
        (EDITS.replace("nn.Identity()", "nn.Conv2d(1, 1, 1).weight"), MODULE, FUNCTION),
        (COLLECTS.format("collect(mod, found)"), MODULE, FUNCTION),
        (COLLECTS.format("mod.weight = None"), MODULE, FUNCTION),
        (COLLECTS.format("setattr(module, '0', nn.Conv2d(1, 1, 1))"), MODULE, FUNCTION),
    ],
)
def test_any_other_function_passes_a_layer_over(source, module, function):
    layer = PatchNormConv2d(3, 4, 3, stride=2, padding=1)
    model = nn.Sequential(layer)
    found = []
    define(source, module, function)(model, found)
    assert model[0] is layer
    assert not found
    assert (layer.stride, layer.dilation, layer.padding) == ((2, 2), (1, 1), (1, 1))
    assert isinstance(layer.weight, nn.Parameter)


def test_what_walks_the_modules_inside_the_function_is_given_the_layers():
    """A loop over the modules is what is asked for; a call from it is not."""
    layer = PatchNormConv2d(3, 4, 3)
    seen = []
    nn.Sequential.look = lambda model: seen.extend(model.modules())
    try:
        define("def replace_strides_with_dilation(module, rate):\n    module.look()\n")(nn.Sequential(layer), 2)
    finally:
        del nn.Sequential.look
    assert seen[1] is layer


def test_the_stand_in_gives_and_takes_geometry_only():
    found = []
    namespace = types.ModuleType(MODULE).__dict__ | {"modules": found}
    exec(COLLECTS.format("modules[:] = [mod]"), namespace)
    layer = PatchNormConv2d(3, 4, 3)
    namespace["nn"] = nn
    namespace[FUNCTION](layer, None)
    (stand_in,) = found
    assert isinstance(stand_in, nn.Conv2d)
    assert stand_in.kernel_size == (3, 3)
    for name in ("weight", "in_channels", "forward", "state_dict"):
        with pytest.raises(AttributeError, match="has its geometry only"):
            getattr(stand_in, name)
        with pytest.raises(AttributeError, match="takes a change of its geometry only"):
            setattr(stand_in, name, None)
    with pytest.raises(TypeError, match="not callable"):
        stand_in(torch.zeros(1, 3, 4, 4))
