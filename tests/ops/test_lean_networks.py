"""Networks of lean ops: what they save, compiled or not, and that their gradients stay the same."""

import pytest
import timm
import torch
from shallow import shallow
from torch.utils.checkpoint import checkpoint

from affnorm_zoo import PatchNormConv2d
from affnorm_zoo.evaluation.memory import saved_bytes
from affnorm_zoo.models._entrypoints import zoo_models


@pytest.mark.parametrize(
    ("ours", "theirs", "bar"),
    [
        ("resnet50_patchnorm", "resnet50", 0.47),
        ("resnet50_patchnorm_l2", "resnet50", 0.47),
        ("resnet50_patchnorm_ws", "resnet50", 0.47),
        ("resnet18_patchnorm", "resnet18", 0.52),
        ("resnet18_patchnorm_ws", "resnet18", 0.52),
        ("vit_small_patch16_224_affinelike", "vit_small_patch16_224", 0.75),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
def test_networks_save_a_fraction_of_their_standard_twins(ours, theirs, bar, dtype):
    x = torch.randn(1, 3, 224, 224, dtype=dtype)
    saved = [saved_bytes(timm.create_model(name).to(dtype).train(), x) for name in (ours, theirs)]
    assert saved[0] <= bar * saved[1], saved[0] / saved[1]


@pytest.mark.parametrize("name", ["resnet20_cifar_patchnorm_ws", "vit_nano_patch4_32_affinelike"])
def test_activation_checkpointing_changes_no_gradient(name):
    model = timm.create_model(name, **shallow(name)).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)

    def gradients(enable):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    for actual, expected in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(actual, expected)
    layer = PatchNormConv2d(3, 4, 3).double()
    assert checkpoint(layer, x, use_reentrant=False).requires_grad


@pytest.mark.parametrize(
    "name",
    ["resnet20_cifar_patchnorm_ws",
     *(pytest.param(name, marks=pytest.mark.slow) for name in (
         "resnet20_cifar_patchnorm", "resnet20_cifar_patchnorm_l2", "vit_nano_patch4_32_affinelike",
         "vit_nano_patch4_32_normlike"))],
)  # fmt: skip
def test_networks_compile_to_one_graph_with_the_same_gradients(name):
    model = timm.create_model(name, **shallow(name)).train()
    x = torch.randn(2, 3, 32, 32)
    g = torch.randn(2, 10)
    torch._dynamo.reset()

    def gradients(network):
        model.zero_grad()
        (network(x) * g).sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    # the partitioner that decides what is saved, without the minute that code generation takes
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager_decomp_partition")
    for actual, expected in zip(gradients(compiled), gradients(model), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    assert saved_bytes(compiled, x) <= 1.1 * saved_bytes(model, x)


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo_models())
def test_every_model_compiles_to_one_graph_that_saves_no_more(name):
    model = timm.create_model(name).train()
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager_decomp_partition")
    assert saved_bytes(compiled, x) <= 1.1 * saved_bytes(model, x)
    compiled(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18_patchnorm", "resnext50_32x4d_patchnorm_l2", "resnet50d_patchnorm_ws", "seresnet50_patchnorm",
             "vit_tiny_patch16_224_affinelike", "vit_tiny_patch16_224_normlike"],
)  # fmt: skip
def test_inductor_compiles_every_family(name):
    model = timm.create_model(name, num_classes=5).train()
    x = torch.randn(2, 3, 224, 224)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    y = compiled(x)
    torch.testing.assert_close(y, model(x), rtol=1e-3, atol=1e-4)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_grad_scaler_unscales_what_the_ops_return():
    model = timm.create_model("resnet20_cifar_patchnorm")
    x, g = torch.randn(4, 3, 32, 32), torch.randn(4, 10)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = (model(x).float() * g).sum()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    scaled = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    (model(x) * g).sum().backward()
    for half, full in zip(scaled, (p.grad for p in model.parameters()), strict=True):
        # twenty layers of float16, each rounding at 2⁻¹⁰, compared in the norm
        assert (half - full).norm() <= 0.1 * full.norm() + 1e-4
