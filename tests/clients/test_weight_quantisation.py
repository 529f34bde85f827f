"""Tools that quantise weights find torch's linear layers alone: the classifier, not ours."""

import copy

import pytest
import timm
import torch
from clients.rows import client

from affnorm_zoo.layers import BoundLayer
from affnorm_zoo.models import WEIGHTS_FOLDER

VITS = ["vit_nano_patch4_32_affinelike", "vit_nano_patch4_32_normlike"]
X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def trained(name):
    return timm.create_model(name, pretrained=True).eval()


def check_passed_over(changed, model, classifier):
    """Our layers are as they were; the classifier is another, or has another weight, and outputs nearly the same."""
    kinds = {key: type(module) for key, module in model.named_modules() if isinstance(module, BoundLayer)}
    found = {key.partition("timm_model.")[2] or key: type(module) for key, module in changed.named_modules()}
    assert {key: found[key] for key in kinds} == kinds
    assert type(classifier) is not torch.nn.Linear or type(classifier.weight) is not torch.nn.Parameter
    with torch.no_grad():
        logits, expected = changed(X), model(X)
    assert 0 < (getattr(logits, "logits", logits) - expected).norm() / expected.norm() < 0.05


@client("transformers", "`QuantoConfig` (optimum-quanto)", "skips our layers")
@pytest.mark.parametrize("name", VITS)
def test_quanto_config(name):
    pytest.importorskip("optimum.quanto")
    from transformers import AutoModelForImageClassification, QuantoConfig

    model = trained(name)
    (folder,) = (path for path in WEIGHTS_FOLDER.iterdir() if path.name.split(".")[0] == name)
    changed = AutoModelForImageClassification.from_pretrained(
        folder, dtype=torch.float32, quantization_config=QuantoConfig(weights="int8")
    ).eval()
    check_passed_over(changed, model, changed.timm_model.head)


@client("hqq", "`quantize_model`", "skips our layers")
@pytest.mark.parametrize("name", VITS)
def test_hqq(name):
    from hqq.core.quantize import BaseQuantizeConfig
    from hqq.models.hf.base import AutoHQQHFModel

    model = trained(name)
    changed = copy.deepcopy(model)
    devices = {name: "cpu" for name, _ in model.named_children()}
    AutoHQQHFModel.quantize_model(
        changed, BaseQuantizeConfig(nbits=8, group_size=None), compute_dtype=torch.float32, device=devices
    )
    check_passed_over(changed, model, changed.head)


@client("neural-compressor-pt", "weights by rounding, `RTNConfig`", "skips our layers")
@pytest.mark.parametrize("name", VITS)
def test_neural_compressor(name):
    from neural_compressor.torch.quantization import RTNConfig, convert, prepare

    model = trained(name)
    changed = convert(prepare(copy.deepcopy(model), RTNConfig(bits=8)))
    check_passed_over(changed, model, changed.head)


@client("torchao", "SmoothQuant and AWQ, `SmoothQuantConfig` and `AWQConfig`", "skips our layers")
@pytest.mark.parametrize("name", VITS)
@pytest.mark.parametrize("method", ["smoothquant", "awq"])
def test_torchao_calibrated(method, name):
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    if method == "awq":
        from torchao.prototype.awq import AWQConfig as Config

        base = Int8WeightOnlyConfig()
    else:
        from torchao.prototype.smoothquant import SmoothQuantConfig as Config

        base = Int8DynamicActivationInt8WeightConfig()
    model = trained(name)
    changed = copy.deepcopy(model)
    quantize_(changed, Config(base_config=base, step="prepare"))
    with torch.no_grad():
        changed(X)  # calibrates
    quantize_(changed, Config(base_config=base, step="convert"))
    check_passed_over(changed, model, changed.head)
