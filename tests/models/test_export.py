"""The same network in other runtimes: torch.fx, torch.export and ONNX."""

import onnxruntime
import pytest
import timm
import torch

import affnorm_zoo

NAMES = ["resnet20_cifar_patchnorm_ws", "resnet20_cifar_patchnorm_l2", "vit_nano_patch4_32_affinelike"]


@pytest.fixture(params=NAMES)
def model(request):
    return timm.create_model(request.param).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_runtime_computes_the_same(model, images):
    program = torch.onnx.export(model, (images,), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(images), rtol=1e-4, atol=1e-5)


def test_export_holds_plain_operators_and_computes_the_same(model, images):
    program = torch.export.export(model, (images,))
    assert all(
        str(node.target).startswith(("aten.", "<built-in"))
        for node in program.graph.nodes
        if node.op == "call_function"
    )
    torch.testing.assert_close(program.module()(images), model(images))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (affnorm_zoo.PatchNormConv2d(3, 4, 3, gain=True, weight_standardization=True, activation="relu"), (2, 3, 8, 8)),
        (affnorm_zoo.AffineLikeLinear(3, 4), (5, 3)),
        (affnorm_zoo.NormLikeLinear(3, 4, input_activation="gelu"), (5, 3)),
        (affnorm_zoo.L2Norm(3), (5, 3)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_traced_layer_calls_the_op_and_keeps_its_gradient(layer, shape):
    traced = torch.fx.symbolic_trace(layer)
    x = torch.randn(shape)
    dz = torch.randn_like(layer(x))
    inputs = [t.requires_grad_() for t in (x, *layer.parameters())]
    for actual, expected in zip(
        torch.autograd.grad(traced(x), inputs, dz), torch.autograd.grad(layer(x), inputs, dz), strict=True
    ):
        assert torch.equal(actual, expected)


def test_a_whole_resnet_can_be_traced_without_timms_leaves(images):
    model = timm.create_model("resnet20_cifar_patchnorm").eval()
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(images), model(images))
