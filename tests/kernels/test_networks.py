"""Networks in float32 against float64, at a tolerance that tells float32 from TF32."""

import os

import pytest
import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from twins import DEVICE

import affnorm_zoo  # noqa: F401 registers the models

aten = torch.ops.aten


def gradients(model, x, cotangent):
    model.zero_grad()
    (model(x) * cotangent).sum().backward()
    return {key: p.grad.cpu().double().clone() for key, p in model.named_parameters()}


def twins(name, size, device):
    """The true gradients and a function that gives those of the same network in float32."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7).train()
    x, cotangent = torch.randn(2, 3, size, size), torch.randn(2, 7)
    truth = gradients(model.double(), x.double(), cotangent.double())
    model.float().to(device)
    return truth, lambda: gradients(model, x.to(device), cotangent.to(device))


def assert_float32(actual, truth):
    """Tolerances that float32 keeps and operands rounded to TF32 exceed; a test below says so."""
    for key, expected in truth.items():
        torch.testing.assert_close(actual[key], expected, rtol=1e-2, atol=1e-3 * expected.abs().max().item(), msg=key)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize(
    "name", ["resnet18_patchnorm", "resnext50_32x4d_patchnorm_l2", "vit_tiny_patch16_224_affinelike"]
)
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
def test_networks_on_the_gpu_equal_those_on_the_cpu(name, order):
    truth, run = twins(name, 224, DEVICE)
    assert_float32(run(), truth)


class RoundedOperands(TorchDispatchMode):
    """Rounds the operands of products as TF32 does: to 10 bits of mantissa."""

    PRODUCTS = (aten.convolution.default, aten.convolution_backward.default, aten.mm.default, aten.addmm.default)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in self.PRODUCTS:
            args = tree_map(self.rounded, args)
        return function(*args, **(kwargs or {}))

    @staticmethod
    def rounded(t):
        if not torch.is_tensor(t) or t.dtype != torch.float32:
            return t
        return ((t.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def test_the_tolerance_tells_float32_from_tf32():
    truth, run = twins("resnet18_patchnorm", 96, "cpu")
    assert_float32(run(), truth)
    with RoundedOperands(), pytest.raises(AssertionError):
        assert_float32(run(), truth)


def test_the_process_computes_in_float32_and_may_be_deterministic():
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
