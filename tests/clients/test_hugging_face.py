"""transformers: its doors to our models, and its trainer."""

import json

import pytest
import timm
import torch
from clients.rows import client, trained
from PIL import Image

from affnorm_zoo.models import WEIGHTS_FOLDER

FOLDERS = sorted(WEIGHTS_FOLDER.iterdir(), key=lambda folder: folder.name)
HALF = WEIGHTS_FOLDER / "vit_nano_patch4_32_affinelike.c10_e60"


@client("transformers", "`AutoModelForImageClassification` on every packaged folder", "logits equal to the bit")
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_transformers_classifies(folder, tmp_path):
    from transformers import AutoModelForImageClassification

    x = torch.randn(2, 3, 32, 32)
    expected = trained(folder.name)(x)
    model = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
    assert torch.equal(model(x).logits, expected)
    assert model.config.id2label[0] == "airplane"
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(again(x).logits, expected)


@client("transformers", "a folder of timm's `save_for_hf`, timm's own networks alike", "needs `num_classes` removed")
@pytest.mark.parametrize("name", ["resnet18", "resnet18_patchnorm", "vit_tiny_patch16_224_affinelike"])
def test_transformers_reads_what_timm_writes(name, tmp_path):
    from timm.models import save_for_hf
    from transformers import AutoModelForImageClassification

    model = timm.create_model(name, num_classes=3, **({"img_size": 64} if name.startswith("vit") else {})).eval()
    save_for_hf(model, tmp_path)
    file, x = tmp_path / "config.json", torch.randn(2, 3, 64, 64)
    config = json.loads(file.read_text())
    with pytest.raises(TypeError, match="multiple values for keyword argument 'num_classes'"):
        AutoModelForImageClassification.from_pretrained(tmp_path)
    del config["model_args"]["num_classes"]
    file.write_text(json.dumps(config))
    assert torch.equal(AutoModelForImageClassification.from_pretrained(tmp_path).eval()(x).logits, model(x))


@client("transformers", "weights stored in float16, without `dtype`", "compute in float16")
def test_transformers_keeps_the_stored_type():
    from transformers import AutoModelForImageClassification

    assert AutoModelForImageClassification.from_pretrained(HALF).dtype == torch.float16
    assert "transformers computes in it unless it is given `dtype=torch.float32`" in (HALF / "README.md").read_text()


@client("transformers", "`AutoModel`, `AutoBackbone`, `pipeline`")
@pytest.mark.parametrize("name", ["resnet20_cifar_patchnorm_ws.c10_e60", "resnet20_cifar_patchnorm.c10_e10"])
def test_transformers_other_doors(name):
    from transformers import AutoBackbone, AutoModel, TimmBackboneConfig, pipeline

    model, x = trained(name), torch.randn(2, 3, 32, 32)
    base = AutoModel.from_pretrained(WEIGHTS_FOLDER / name, dtype=torch.float32).eval()
    assert torch.equal(base(x).pooler_output, model.forward_head(model.forward_features(x), pre_logits=True))
    # from_pretrained(name) does the same once the Hub has said that it has no such repository
    backbone = AutoBackbone.from_config(TimmBackboneConfig(backbone=name), pretrained=True).eval()
    assert torch.equal(backbone(x).feature_maps[-1], model.forward_features(x))
    classify = pipeline("image-classification", model=str(WEIGHTS_FOLDER / name))
    assert classify(Image.new("RGB", (40, 40)))[0]["label"] in model.pretrained_cfg["label_names"]


@client(
    "transformers",
    "`AutoBackbone` on batch norm, timm's own networks alike",
    "resets running statistics: load the weights again",
)
def test_transformers_backbone_with_batch_norm():
    from transformers import AutoBackbone, TimmBackboneConfig

    name = "resnet20_cifar_batchnorm.c10_e15"
    model, x = trained(name), torch.randn(2, 3, 32, 32)
    backbone = AutoBackbone.from_config(TimmBackboneConfig(backbone=name), pretrained=True).eval()
    assert not backbone._backbone.bn1.running_mean.any()
    backbone._backbone.load_state_dict(model.state_dict(), strict=False)  # it has no classifier
    assert torch.equal(backbone(x).feature_maps[-1], model.forward_features(x))


@client("transformers", "`Trainer`")
def test_transformers_trainer(tmp_path):
    from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

    model = AutoModelForImageClassification.from_pretrained(FOLDERS[-1], dtype=torch.float32)
    before = {name: p.clone() for name, p in model.named_parameters()}
    data = [{"pixel_values": torch.randn(3, 32, 32), "labels": i % 10} for i in range(8)]
    arguments = TrainingArguments(tmp_path, max_steps=2, use_cpu=True, report_to=[], remove_unused_columns=False)
    Trainer(model, arguments, train_dataset=data).train()
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters() if name.endswith("weight"))
