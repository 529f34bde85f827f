"""The same network in other runtimes: torch.fx, torch.export and ONNX."""

import onnxruntime
import pytest
import timm
import torch
from shallow import shallow
from timm.utils.onnx import onnx_export
from torch.distributed import checkpoint

import affnorm_zoo
from affnorm_zoo.models import zoo_models

NAMES = [
    "resnet20_cifar_patchnorm_ws",
    pytest.param("resnet20_cifar_patchnorm_l2", marks=pytest.mark.slow),
    "vit_nano_patch4_32_affinelike",
]


@pytest.fixture(params=NAMES)
def model(request):
    return timm.create_model(request.param, **shallow(request.param)).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32)


def assert_onnx_agrees(model, images):
    program = torch.onnx.export(model, (images,), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_runtime_computes_the_same(model, images):
    assert_onnx_agrees(model, images)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["vit_nano_patch4_32_affinelike", "vit_nano_patch4_32_normlike"])
def test_onnx_runtime_mixes_attention(name, images):
    assert_onnx_agrees(timm.create_model(name, attention="mixed", **shallow(name)).eval(), images)


LEGACY = [
    ("resnet20_cifar_patchnorm_ws", 32, True),
    ("resnet20_cifar_patchnorm_l2", 32, False),
    pytest.param("resnext50_32x4d_patchnorm", 64, False, marks=pytest.mark.slow),
    ("vit_nano_patch4_32_affinelike", 32, False),
    ("mobilenetv3_small_050_patchnorm", 64, False),
    pytest.param("resnetv2_18_patchnorm_ws", 64, False, marks=pytest.mark.slow),
]
RESNETS = [
    name
    for name in zoo_models()
    if timm.model_entrypoint(name).__module__.endswith(".resnet") and name not in [case[0] for case in LEGACY]
]


def check_timms_onnx_export(name, size, is_dynamic, folder, **options):
    model = timm.create_model(name, exportable=True, **shallow(name), **options)
    onnx_export(model, str(folder / "m.onnx"), batch_size=2, input_size=(3, size, size), dynamic_size=is_dynamic)
    session = onnxruntime.InferenceSession(folder / "m.onnx")
    images = torch.randn(3, 3, size + 16 if is_dynamic else size, size)
    (logits,) = session.run(None, {"input0": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("name", "size", "is_dynamic"), LEGACY)
def test_timms_onnx_export_takes_any_batch(name, size, is_dynamic, tmp_path):
    """By torch's legacy exporter, to which timm's onnx_export.py hands a model."""
    check_timms_onnx_export(name, size, is_dynamic, tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning")
def test_timms_onnx_export_takes_a_dilated_network(tmp_path):
    check_timms_onnx_export("resnet18_patchnorm", 64, True, tmp_path, output_stride=8)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", RESNETS)
def test_timms_onnx_export_takes_every_resnet(name, tmp_path):
    check_timms_onnx_export(name, 32 if "cifar" in name else 64, False, tmp_path)


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


@pytest.mark.filterwarnings("ignore::UserWarning")  # that nothing is distributed here
@pytest.mark.parametrize("name", NAMES)
def test_a_distributed_checkpoint_brings_the_network_back(name, tmp_path, images):
    model, other = timm.create_model(name).eval(), timm.create_model(name).eval()
    checkpoint.save({"model": model.state_dict()}, checkpoint_id=tmp_path)
    content = {"model": other.state_dict()}
    checkpoint.load(content, checkpoint_id=tmp_path)
    other.load_state_dict(content["model"])
    assert torch.equal(other(images), model(images))
