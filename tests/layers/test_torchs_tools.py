"""Layers under torch's and accelerate's tools that keep, move or repeat what a layer computes."""

import copy
from functools import partial

import pytest
import timm
import torch
from accelerate import cpu_offload
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import skip_init
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from affnorm_zoo import AffineLikeLinear, NormLikeLinear, PatchNormConv2d, PatchNormConv2dSame

NETWORKS = ["resnet20_cifar_patchnorm", "resnet20_cifar_patchnorm_ws", "vit_nano_patch4_32_normlike"]
CONV = dict(in_channels=3, out_channels=4, kernel_size=3)
LAYERS = {
    "affine_like": partial(AffineLikeLinear, 6, 4, scale="rms"),
    "norm_like": partial(NormLikeLinear, 6, 4),
    "gelu": partial(AffineLikeLinear, 6, 4, input_activation="gelu"),
    "conv": partial(PatchNormConv2d, **CONV),
    "pointwise": partial(PatchNormConv2d, 3, 4, 1, variant="norm_like"),
    "relu": partial(PatchNormConv2d, **CONV, activation="relu"),
    "silu": partial(PatchNormConv2d, **CONV, activation="silu", recompute=True),
    "standardised": partial(PatchNormConv2d, **CONV, gain=True, weight_standardization=True),
    "same": partial(PatchNormConv2dSame, **CONV, stride=2),
}


def gradients(model, run=lambda model, x: model(x)):
    """Of the input and all parameters, for a random cotangent."""
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = run(model, x)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad(y, [x, *model.parameters()], dy)


def assert_equal_gradients(run, name):
    model = timm.create_model(name).eval()
    for found, expected in zip(gradients(model, run), gradients(model), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_selective_checkpointing_may_keep_the_products(name):
    """It refuses a kept tensor that was changed in place, as these layers change a product's result."""
    products = {torch.ops.aten.convolution.default, torch.ops.aten.mm.default, torch.ops.aten.addmm.default}
    kept = []

    def policy(context, op, *args, **kwargs):
        kept.extend([op] * (op in products and not context.is_recompute))
        return CheckpointPolicy.MUST_SAVE if op in products else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(create_selective_checkpoint_contexts, policy)
    assert_equal_gradients(partial(checkpoint, use_reentrant=False, context_fn=contexts), name)
    assert len(kept) > 5


@pytest.mark.parametrize("name", NETWORKS)
def test_saved_tensors_may_be_kept_elsewhere(name):
    packed = []

    def pack(tensor):
        packed.append(tensor.numel())
        return tensor.detach().to(torch.float64)  # anything but the tensor itself

    def run(model, x):
        with saved_tensors_hooks(pack, lambda tensor: tensor.float()):
            return model(x)

    assert_equal_gradients(run, name)
    assert sum(packed) > 10_000


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("changed", ["input", "weight"])
def test_a_change_in_place_before_the_backward_is_an_error(name, changed):
    layer = LAYERS[name]()
    x = torch.randn((2, 3, 7, 7) if layer.weight.ndim == 4 else (2, 6)).requires_grad_()
    hidden = x * 1.0
    y = layer(hidden)
    with torch.no_grad():
        (hidden if changed == "input" else layer.weight).mul_(2)
    if name == "same" and changed == "input":  # the layer saves the padded image, a tensor of its own
        torch.autograd.grad(y, x, torch.randn_like(y))
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y, x, torch.randn_like(y))


@pytest.mark.parametrize("name", LAYERS)
def test_many_cotangents_may_be_pulled_back_at_once(name):
    """As vectorised Jacobians do, by vmap over the backward."""
    layer = LAYERS[name]().double()
    x = torch.randn((2, 3, 5, 5) if layer.weight.ndim == 4 else (2, 6), dtype=torch.float64).requires_grad_()
    inputs = [x, *layer.parameters()]
    y = layer(x)
    many = torch.randn(4, *y.shape, dtype=torch.float64)
    found = torch.autograd.grad(y, inputs, many, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, inputs, dy, retain_graph=True) for dy in many]
    mapped = torch.func.vmap(lambda dy: torch.autograd.grad(y, inputs, dy, retain_graph=True))(many)
    for batched, by_vmap, *expected in zip(found, mapped, *each, strict=True):
        torch.testing.assert_close(batched, torch.stack(expected))
        torch.testing.assert_close(by_vmap, torch.stack(expected))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18_patchnorm", {}),  # with blocks that are one op, and a pooling
        ("vit_nano_patch4_32_affinelike", dict(depth=1, embed_dim=24, attention="mixed")),
    ],
)
def test_so_it_is_for_a_network(name, options):
    model = timm.create_model(name, num_classes=3, **options).eval().double()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian
    torch.testing.assert_close(jacobian(model, x, vectorize=True), jacobian(model, x))


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_may_be_built_without_being_drawn(name):
    """As fast loaders build layers: without memory first, then with memory of any content."""
    build = LAYERS[name]
    layer = skip_init(build.func, *build.args, **build.keywords)
    assert layer.weight.device.type == "cpu"
    drawn = build()
    layer.load_state_dict(drawn.state_dict())
    x = torch.randn((2, 3, 7, 7) if layer.weight.ndim == 4 else (2, 6))
    assert torch.equal(layer(x), drawn(x))


@pytest.mark.parametrize("name", [*NETWORKS, "resnet18_patchnorm"])
def test_weights_may_be_brought_for_each_call(name):
    """Offloading puts a forward of its own on each layer; a block that took the layers' weights would find none."""
    model = timm.create_model(name).eval()
    x = torch.randn(2, 3, 32, 32)
    offloaded = cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in offloaded.parameters())
    with torch.no_grad():  # a hooked layer leaves the sum with the shortcut to its block, which rounds once more
        expected = model(x)
        torch.testing.assert_close(offloaded(x), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", LAYERS)
def test_weights_of_any_strides_give_the_same(name):
    layer = LAYERS[name]()
    x = torch.randn((2, 3, 7, 7) if layer.weight.ndim == 4 else (2, 6))
    strided = copy.deepcopy(layer)
    strided.weight = nn.Parameter(torch.stack([layer.weight.detach()] * 2, dim=-1)[..., 0])
    assert not strided.weight.is_contiguous()
    torch.testing.assert_close(strided(x), layer(x))
