"""The layers are no nn.Linear and no nn.Conv2d, and yet have what those have; others' tools heed or are refused."""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from affnorm_zoo import AffineLikeLinear, NormLikeLinear, PatchNormConv2d, PatchNormConv2dSame
from affnorm_zoo.factory import init_bound_weights

CONV = dict(stride=2, padding=(1, 2), dilation=(2, 1), groups=2)
TWINS = {
    "affine_like": (AffineLikeLinear(6, 4), nn.Linear(6, 4)),
    "norm_like": (NormLikeLinear(6, 4, bias=False), nn.Linear(6, 4, bias=False)),
    "conv": (PatchNormConv2d(6, 4, (3, 5), **CONV), nn.Conv2d(6, 4, (3, 5), **CONV)),
    "conv_named": (PatchNormConv2d(6, 4, 3, padding="same"), nn.Conv2d(6, 4, 3, padding="same")),
    "conv_mode": (
        PatchNormConv2d(6, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"),
    ),
    "conv_same": (PatchNormConv2dSame(6, 4, 3, stride=2), Conv2dSame(6, 4, 3, stride=2)),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_layer_has_the_attributes_of_its_twin_but_not_its_class(name):
    layer, twin = TWINS[name]
    assert not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
    public = {key: value for key, value in vars(twin).items() if not key.startswith("_")}
    assert {key: getattr(layer, key) for key in public} == public
    assert [*layer.state_dict()] == [*twin.state_dict()]
    assert (layer.bias is None) == (twin.bias is None)
    shown = repr(twin).partition("(")[2].removesuffix(")")
    assert repr(layer).startswith(f"{type(layer).__name__}({shown}")


EDITS = [
    {"stride": 2},
    {"padding": (2, 1)},
    {"padding": "valid"},
    {"dilation": (2, 2), "padding": (2, 2)},
    {"stride": (1, 1), "dilation": 2, "padding": 2},
    {"padding_mode": "circular"},
    {"padding_mode": "replicate", "padding": (2, 1)},
    {"padding": "same", "dilation": (2, 3)},
    {"padding_mode": "reflect", "padding": "same", "dilation": 2},
]


@pytest.mark.parametrize("edit", EDITS, ids=str)
@pytest.mark.parametrize("gain", [False, True])
def test_an_edited_geometry_is_obeyed(edit, gain):
    layer = PatchNormConv2d(3, 4, 3, padding=1, gain=gain, scale="rms")
    built = PatchNormConv2d(3, 4, 3, gain=gain, scale="rms", **{"padding": 1, **edit})
    built.load_state_dict(layer.state_dict())
    for name, value in edit.items():
        setattr(layer, name, value)
    x = torch.randn(2, 3, 9, 8)
    assert torch.equal(layer(x), built(x))
    assert repr(layer) == repr(built)
    assert torch.equal(torch.jit.script(copy.deepcopy(layer))(x), torch.jit.script(built)(x))


@pytest.mark.parametrize(
    "edit", [{"stride": 1, "dilation": 2}, {"padding": 2}, {"stride": 1, "padding": "same"}], ids=str
)
def test_an_edited_same_convolution_pads_as_its_twin(edit):
    layer, twin = PatchNormConv2dSame(3, 4, 3, stride=2), Conv2dSame(3, 4, 3, stride=2)
    x = torch.randn(1, 3, 7, 10)
    for name, value in edit.items():
        setattr(layer, name, value)
        setattr(twin, name, value if isinstance(value, str) else (value, value))
    built = PatchNormConv2dSame(3, 4, 3, layer.stride, dilation=layer.dilation)
    built.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), built(x))
    assert layer(x).shape == twin(x).shape


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_a_padding_mode_of_a_same_convolution_is_obeyed(mode):
    layer, x = PatchNormConv2dSame(3, 4, (3, 2), stride=2), torch.randn(1, 3, 8, 9)
    layer.padding_mode = mode
    plain = PatchNormConv2d(3, 4, (3, 2), stride=2)
    plain.load_state_dict(layer.state_dict())
    expected = plain(nn.functional.pad(x, (0, 1, 0, 1), mode))  # 3 rows fit 8 with one more, 2 columns 9 likewise
    assert torch.equal(layer(x), expected)
    assert torch.equal(torch.jit.script(layer)(x), expected)


@pytest.mark.parametrize(
    ("edit", "message"),
    [({"padding": "full"}, "padding must be"), ({"padding_mode": "wrap"}, "padding_mode must be one of zeros"),
     ({"padding": "same", "stride": 2}, "padding='same' needs stride 1")],
    ids=str,
)  # fmt: skip
def test_an_impossible_edit_is_refused_and_leaves_the_layer_as_it_was(edit, message):
    layer, x = PatchNormConv2d(3, 4, 3, padding=1), torch.randn(2, 3, 6, 6)
    *possible, (last, impossible) = edit.items()
    for name, value in possible:
        setattr(layer, name, value)
    before, expected = getattr(layer, last), layer(x)
    with pytest.raises(ValueError, match=message):
        setattr(layer, last, impossible)
    assert getattr(layer, last) == before
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
def test_hooks_keep_what_the_layer_put_out(recompute, kernel):
    layer, seen = PatchNormConv2d(3, 4, kernel, recompute=recompute), {}
    x = torch.randn(2, 3, 6, 6)
    expected = layer(x).detach()

    def behind(y):
        y += 1.0
        return y.relu_()

    assert behind(layer(x)).data_ptr()  # without hooks the output itself may be written into
    handles = [
        layer.register_forward_hook(lambda module, args, out: seen.update(here=out)),
        nn.modules.module.register_module_forward_hook(lambda module, args, out: seen.update(everywhere=out)),
    ]
    behind(layer(x))
    for handle in handles:
        handle.remove()
    assert torch.equal(seen["here"], expected)
    assert torch.equal(seen["everywhere"], expected)
    del seen["here"]
    with nn.modules.module.register_module_forward_hook(lambda module, args, out: seen.update(alone=out)):
        behind(layer(x))
    assert torch.equal(seen["alone"], expected)


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_backward_hooks_bear_an_in_place_sum(register):
    layer, seen = PatchNormConv2d(3, 4, 3, padding=1), []
    x, dz = torch.randn(2, 3, 6, 6, requires_grad=True), torch.randn(2, 4, 6, 6)
    (expected,) = torch.autograd.grad(layer(x), x, dz)
    getattr(layer, register)(lambda module, *gradients: seen.append(gradients[-1][0]))
    y = layer(x)
    y += torch.ones_like(y)
    (actual,) = torch.autograd.grad(y, x, dz)
    assert torch.equal(actual, expected)
    assert torch.equal(seen[0], dz)


LAYERS = {
    "affine_like": lambda: AffineLikeLinear(6, 6),
    "norm_like": lambda: NormLikeLinear(6, 6),
    "conv": lambda: PatchNormConv2d(6, 6, 3),
    "conv_ws": lambda: PatchNormConv2d(6, 6, 3, gain=True, weight_standardization=True),
}
COMPUTED = {
    "pruned": (lambda layer: prune.random_unstructured(layer, "weight", 0.5), prune.remove),
    "weight_norm": (parametrizations.weight_norm, parametrize.remove_parametrizations),
    "spectral_norm": (parametrizations.spectral_norm, parametrize.remove_parametrizations),
    "orthogonal": (parametrizations.orthogonal, parametrize.remove_parametrizations),
    "old_weight_norm": (nn.utils.weight_norm, nn.utils.remove_weight_norm),
    "old_spectral_norm": (nn.utils.spectral_norm, nn.utils.remove_spectral_norm),
}
WRITERS = {
    "reset_parameters": lambda layer: layer.reset_parameters(),
    "damp": lambda layer: layer.damp(0.5),
    "reparameterize": lambda layer: getattr(layer, "reparameterize", layer.reset_parameters)(),
    "init_bound_weights": lambda layer: init_bound_weights(nn.Sequential(layer)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("tool", COMPUTED)
@pytest.mark.parametrize("name", LAYERS)
def test_a_computed_weight_is_not_written_into(name, tool, writer):
    layer = LAYERS[name]()
    apply, remove = COMPUTED[tool]
    apply(layer)
    layer.eval()  # a spectral norm goes on with its iteration in training
    x = torch.randn(2, 6, 5, 6)
    before = layer(x)
    with pytest.raises(ValueError, match=r"weight of .* is computed from other tensors") as refused:
        WRITERS[writer](layer)
    assert remove.__name__ in str(refused.value)
    assert torch.equal(layer(x), before)
    remove(layer, *(() if remove is nn.utils.remove_weight_norm else ("weight",)))
    if writer == "reparameterize" and hasattr(layer, "reparameterize"):
        before = layer(x)
        layer.reparameterize()
        torch.testing.assert_close(layer(x), before)
    else:
        WRITERS[writer](layer)
        assert not torch.equal(layer(x), before)


def test_a_computed_gain_or_bias_is_not_written_into_either():
    for name in ("gain", "bias"):
        layer = PatchNormConv2d(6, 4, 3, gain=True)
        prune.random_unstructured(layer, name, 0.5)
        for writer in (layer.reparameterize, layer.reset_parameters, lambda layer=layer: layer.damp(0.5)):
            with pytest.raises(ValueError, match=f"{name} of PatchNormConv2d is computed"):
                writer()


def test_a_fusion_with_batch_norm_is_refused():
    for layer, norm, fuse in (
        (PatchNormConv2d(3, 4, 3), nn.BatchNorm2d(4), fuse_conv_bn_eval),
        (PatchNormConv2dSame(3, 4, 3), nn.BatchNorm2d(4), fuse_conv_bn_eval),
        (AffineLikeLinear(3, 4), nn.BatchNorm1d(4), fuse_linear_bn_eval),
        (NormLikeLinear(3, 4, bias=False), nn.BatchNorm1d(4), fuse_linear_bn_eval),
    ):
        with pytest.raises(TypeError, match=r"cannot be fused with a batch norm.*leave the batch norm"):
            fuse(layer.eval(), norm.eval())
        layer.weight = nn.Parameter(layer.weight.clone())  # others may still replace a weight


@pytest.mark.parametrize(
    ("module", "table"), [("thop.profile", "register_hooks"), ("ptflops.pytorch_ops", "MODULES_MAPPING")]
)
def test_counters_that_look_types_up_are_told(module, table, monkeypatch):
    handlers = {nn.Linear: "linear", nn.Conv2d: "conv"}
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{table: handlers}))
    model = nn.Sequential(AffineLikeLinear(2, 3), nn.Sequential(PatchNormConv2dSame(2, 3, 3)))
    model.apply(lambda module: None)
    assert handlers[AffineLikeLinear] == "linear"
    assert handlers[PatchNormConv2dSame] == "conv"
    handlers[AffineLikeLinear] = "own"  # what a user has registered stays
    model.apply(lambda module: None)
    assert handlers[AffineLikeLinear] == "own"


def test_torchs_counter_counts_the_products():
    from torch.utils.flop_counter import FlopCounterMode

    for (layer, twin), x in ((TWINS["affine_like"], torch.randn(5, 6)), (TWINS["conv"], torch.randn(2, 6, 9, 8))):
        counts = []
        for module in (layer, twin):
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                module(x)
            counts.append(counter.get_total_flops())
        assert counts[0] == counts[1] > 0
