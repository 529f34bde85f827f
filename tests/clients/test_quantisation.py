"""Tools that replace layers: ours are skipped or refused, never computed without their quotient."""

import copy

import pytest
import timm
import torch
from clients.rows import client

from affnorm_zoo.layers import BoundLayer

VITS = ["vit_nano_patch4_32_affinelike", "vit_nano_patch4_32_normlike"]
RESNET = "resnet20_cifar_patchnorm_ws"


def trained(name, **options):
    return timm.create_model(name, pretrained=True, **options).eval()


def relative(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


def check_close_with_ours_untouched(changed, model, tolerance):
    """A tool may have changed the classifier and the patch embedding, not our layers."""
    x = torch.randn(4, 3, 32, 32)
    kinds = {key: type(module) for key, module in model.named_modules() if isinstance(module, BoundLayer)}
    assert kinds
    assert {key: type(changed.get_submodule(key)) for key in kinds} == kinds
    with torch.no_grad():
        assert relative(changed(x), model(x)) < tolerance


@client("torchao", "quantisation-aware training, `QATConfig`", "skips our layers")
@pytest.mark.parametrize("name", VITS)
def test_torchao_qat(name):
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.qat import QATConfig

    model = trained(name)
    changed = copy.deepcopy(model)
    quantize_(changed, QATConfig(Int8DynamicActivationIntxWeightConfig(), step="prepare"))
    check_close_with_ours_untouched(changed, model, 0.05)


@client("torchao", "float8 training", "skips our layers")
@pytest.mark.parametrize("name", VITS)
def test_torchao_float8(name):
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    model = trained(name)
    changed = convert_to_float8_training(copy.deepcopy(model), config=Float8LinearConfig(emulate=True))
    check_close_with_ours_untouched(changed, model, 0.1)


@client("torchao", "8-bit weights, `quantize_` with a filter", "works")
@pytest.mark.parametrize("name", VITS)
def test_torchao_weight_only(name):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = trained(name)
    changed = copy.deepcopy(model)
    quantize_(changed, Int8WeightOnlyConfig(), filter_fn=lambda module, _: isinstance(module, BoundLayer))
    layer = changed.blocks[0].attn.qkv
    assert type(layer.weight) is not torch.nn.Parameter
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert 0 < relative(changed(x), model(x)) < 0.05


@client("torchao", "8-bit weights and activations by default", "skips our layers")
def test_torchao_dynamic():
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = trained(VITS[0])
    changed = copy.deepcopy(model)
    quantize_(changed, Int8DynamicActivationInt8WeightConfig())
    check_close_with_ours_untouched(changed, model, 0.05)


@client("optimum-quanto", "`quantize` of weights and activations", "skips our layers")
@pytest.mark.parametrize("name", [*VITS, RESNET])
def test_quanto(name):
    from optimum.quanto import freeze, qint8, quantize

    model = trained(name)
    changed = copy.deepcopy(model)
    quantize(changed, weights=qint8)
    freeze(changed)
    check_close_with_ours_untouched(changed, model, 0.05)


@client("accelerate", "conversion to 8-bit floats by torchao, `convert_model_to_fp8_ao`", "skips our layers")
@pytest.mark.parametrize("name", VITS)
def test_accelerate_fp8(name):
    pytest.importorskip("torchao")
    from accelerate.utils.ao import convert_model_to_fp8_ao
    from torchao.float8 import Float8LinearConfig

    model = trained(name)
    changed = copy.deepcopy(model)
    convert_model_to_fp8_ao(changed, config=Float8LinearConfig(emulate=True))
    check_close_with_ours_untouched(changed, model, 0.1)


PEFT_METHODS = {
    "LoraConfig": dict(r=4),
    "HRAConfig": dict(r=4),
    "BOFTConfig": dict(boft_block_size=4),
    "OFTConfig": dict(r=0, oft_block_size=4),
    "LoHaConfig": dict(r=4),
    "LoKrConfig": dict(r=4),
    "IA3Config": dict(feedforward_modules=[]),
    "ShiraConfig": dict(r=4),
    "VeraConfig": dict(r=4),
    "FourierFTConfig": dict(n_frequency=10),
    "RandLoraConfig": dict(r=4),
}


@client("peft", "adapters beside a layer, `target_modules`: " + ", ".join(PEFT_METHODS), "refused by peft")
@pytest.mark.parametrize("method", PEFT_METHODS)
@pytest.mark.parametrize("name", [VITS[0], RESNET])
def test_peft_refuses_adapters_beside_ours(name, method):
    import peft

    targets = ["qkv"] if name == VITS[0] else ["conv1", "conv2"]
    config = getattr(peft, method)(target_modules=targets, **PEFT_METHODS[method])
    with pytest.raises((ValueError, TypeError), match=r"supported|compatible"):
        peft.get_peft_model(trained(name), config)


@client("peft", "LoRA on weights, `target_parameters`, trained and merged", "works")
@pytest.mark.parametrize("name", [*VITS, "vit_nano_patch4_32_layernorm"])
def test_peft_target_parameters_merge_into_what_was_trained(name):
    from peft import LoraConfig, get_peft_model

    base = trained(name)
    model = get_peft_model(
        base, LoraConfig(r=4, target_modules=[], target_parameters=["attn.qkv.weight", "mlp.fc2.weight"])
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8)
    before = model(x).detach()
    for _ in range(3):
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        after = model(x)
        assert relative(after, before) > 0.05
        assert relative(model.merge_and_unload()(x), after) < 1e-4


@client("nncf", "8-bit post-training quantisation of the torch model, `disable_bias_correction=True`")
@pytest.mark.timeout(1200)
def test_nncf_on_torch(monkeypatch):
    # it compiles an extension when it is first used, and gives that a minute
    monkeypatch.setenv("NNCF_EXTENSION_LOAD_TIMEOUT", "1000")
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters

    model, images = trained("resnet20_cifar_patchnorm"), torch.randn(16, 3, 32, 32)
    quantized = nncf.quantize(
        copy.deepcopy(model),
        nncf.Dataset(images.split(4)),
        advanced_parameters=AdvancedQuantizationParameters(disable_bias_correction=True),
    )
    with torch.no_grad():
        assert relative(quantized(images), model(images)) < 0.1


@client("nncf", "the same of a vision transformer, with `model_type=ModelType.TRANSFORMER` too")
@pytest.mark.parametrize("name", VITS)
@pytest.mark.timeout(1200)
def test_nncf_on_transformers(name, monkeypatch):
    monkeypatch.setenv("NNCF_EXTENSION_LOAD_TIMEOUT", "1000")
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters

    model, images = trained(name), torch.randn(16, 3, 32, 32)
    quantized = nncf.quantize(
        copy.deepcopy(model),
        nncf.Dataset(images.split(4)),
        model_type=nncf.ModelType.TRANSFORMER,
        advanced_parameters=AdvancedQuantizationParameters(disable_bias_correction=True),
    )
    with torch.no_grad():
        assert relative(quantized(images), model(images)) < 0.1


@client("nncf", "8-bit post-training quantisation of the OpenVINO model")
@pytest.mark.timeout(150)
def test_nncf_on_openvino():
    import nncf
    import openvino

    model, images = trained("resnet20_cifar_patchnorm"), torch.randn(16, 3, 32, 32)
    converted = openvino.convert_model(model, example_input=images[:4])
    quantized = nncf.quantize(converted, nncf.Dataset([part.numpy() for part in images.split(4)]))
    found = torch.from_numpy(openvino.compile_model(quantized, "CPU")(images.numpy())[0])
    with torch.no_grad():
        assert relative(found, model(images)) < 0.5
