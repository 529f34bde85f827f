"""Frameworks that build, train, explain, count or export models."""

import json

import pytest
import timm
import torch
from clients.rows import client
from PIL import Image
from torch import nn

from affnorm_zoo.layers import BoundLayer, PatchNormConv2d
from affnorm_zoo.models import WEIGHTS_FOLDER

FOLDERS = sorted(WEIGHTS_FOLDER.iterdir(), key=lambda folder: folder.name)
HALF = WEIGHTS_FOLDER / "vit_nano_patch4_32_affinelike.c10_e15"


def trained(name, **options):
    return timm.create_model(name, pretrained=True, **options).eval()


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
@pytest.mark.parametrize("name", ["resnet20_cifar_patchnorm_ws.c10_e15", "resnet20_cifar_patchnorm.c10_e10"])
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


@client("segmentation-models-pytorch", "decoders on `tu-` encoders, dilated by timm too")
@pytest.mark.parametrize("decoder", ["Unet", "FPN", "DeepLabV3Plus"])
def test_segmentation(decoder):
    import segmentation_models_pytorch as smp

    model = getattr(smp, decoder)("tu-resnet18_patchnorm", encoder_weights=None, classes=2)
    x = torch.randn(2, 3, 64, 64)
    y = model(x)
    assert y.shape == (2, 2, 64, 64)
    y.square().sum().backward()
    assert all(p.grad is not None for p in model.encoder.parameters())
    if decoder == "DeepLabV3Plus":  # its encoder has an output stride of 16
        assert model.encoder(x)[-1].shape[-1] == 4


@client("segmentation-models-pytorch", "`replace_strides_with_dilation`, which finds convolutions by their class")
@pytest.mark.parametrize("name", ["resnet18_patchnorm", "tf_mobilenetv3_large_100_patchnorm"])
def test_dilating_in_place(name):
    from segmentation_models_pytorch.encoders._utils import replace_strides_with_dilation

    model, by_hand = (timm.create_model(name).eval() for _ in range(2))
    by_hand.load_state_dict(model.state_dict())
    stage = "layer4" if name.startswith("resnet") else "blocks.5"
    replace_strides_with_dilation(model.get_submodule(stage), 2)
    for layer in by_hand.get_submodule(stage).modules():
        if isinstance(layer, PatchNormConv2d | nn.Conv2d):
            rows, columns = layer.kernel_size
            layer.stride, layer.dilation, layer.padding = 1, 2, (rows // 2 * 2, columns // 2 * 2)
    x = torch.randn(1, 3, 64, 64)
    found = model.forward_features(x)
    assert torch.equal(found, by_hand.forward_features(x))
    assert found.shape[-2:] == (4, 4)
    assert [*map(type, model.modules())] == [*map(type, by_hand.modules())]


@client("torch", "AOTInductor: `torch.export`, `aoti_compile_and_package`, `aoti_load_package`, any batch size")
@pytest.mark.parametrize("name", ["resnet20_cifar_patchnorm.c10_e10", "vit_nano_patch4_32_affinelike.c10_e15"])
def test_compiled_ahead_of_time(name, tmp_path):
    model, batch = trained(name).float(), torch.export.Dim("batch", min=2, max=64)
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(4, 3, 32, 32),), dynamic_shapes=({0: batch},))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        compiled = torch._inductor.aoti_load_package(path)
        for size in (4, 7):
            x = torch.randn(size, 3, 32, 32)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)  # sums in another order


@client("torchvision", "`FasterRCNN` and `RetinaNet` on a ResNet of ours")
@pytest.mark.parametrize("kind", ["FasterRCNN", "RetinaNet"])
def test_detection(kind):
    from torchvision.models import detection
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    body = timm.create_model("resnet18_patchnorm")
    layers = {"layer2": "0", "layer3": "1", "layer4": "2"}
    backbone = BackboneWithFPN(body, layers, [128, 256, 512], 32)
    sizes = tuple((size,) for size in (16, 32, 64, 128))
    anchors = detection.anchor_utils.AnchorGenerator(sizes, ((1.0,),) * 4)
    option = "rpn_anchor_generator" if kind == "FasterRCNN" else "anchor_generator"
    model = getattr(detection, kind)(backbone, num_classes=3, min_size=64, max_size=64, **{option: anchors})
    target = {"boxes": torch.tensor([[5.0, 5.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    losses = model([torch.rand(3, 64, 64)], [target])
    sum(losses.values()).backward()
    assert body.conv1.weight.grad.isfinite().all()
    assert len(model.eval()([torch.rand(3, 64, 64)])[0]["boxes"]) >= 0


@client("fastai", "`vision_learner`, one epoch")
def test_fastai(tmp_path):
    from fastai.vision.all import ImageDataLoaders, Resize, vision_learner

    for index in range(16):
        folder = tmp_path / "train" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 48), (16 * index, 40, 80)).save(folder / f"{index}.png")
    loaders = ImageDataLoaders.from_folder(tmp_path, valid_pct=0.25, item_tfms=Resize(48), bs=4, num_workers=0)
    learner = vision_learner(loaders, "resnet18_patchnorm", pretrained=False)
    with learner.no_bar(), learner.no_logging():
        learner.fit(1, 1e-3)
    assert all(p.isfinite().all() for p in learner.model.parameters())
    assert sum(isinstance(module, BoundLayer) for module in learner.model.modules()) == 20


@client("lightning", "`Trainer`, two processes")
def test_lightning(tmp_path):
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = timm.create_model("resnet20_cifar_patchnorm")

        def training_step(self, batch):
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    module = Module()
    before = module.model.conv1.weight.clone()
    data = torch.utils.data.TensorDataset(torch.randn(16, 3, 32, 32), torch.arange(16) % 10)
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", devices=2, strategy="ddp_fork", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(data, 4))
    assert not torch.equal(module.model.conv1.weight, before)


@client("captum", "integrated gradients")
def test_integrated_gradients():
    from captum.attr import IntegratedGradients

    model, x = trained("resnet20_cifar_patchnorm").double(), torch.randn(1, 3, 32, 32, dtype=torch.float64)
    parts = IntegratedGradients(model).attribute(x, target=3, n_steps=60)
    zero = torch.zeros_like(x)
    difference = (model(x) - model(zero))[0, 3].item()
    # a sum over 60 steps of a path with kinks
    assert parts.sum().item() == pytest.approx(difference, rel=0.1, abs=0.05)


@client("captum", "guided backpropagation with `absorb=False`")
def test_guided_backpropagation():
    from captum.attr import GuidedBackprop

    model, x = trained("resnet20_cifar_patchnorm", absorb=False), torch.randn(1, 3, 32, 32)
    assert sum(isinstance(module, nn.ReLU) for module in model.modules()) == 19
    guided = GuidedBackprop(model).attribute(x, target=3)
    handles = [
        module.register_full_backward_hook(lambda module, dx, dz: (dx[0].clamp_min(0.0),))
        for module in model.modules()
        if isinstance(module, nn.ReLU)
    ]
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    inputs = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(inputs)[0, 3], inputs)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(guided, expected)


@client("grad-cam", "`GradCAM` on a stage and on a convolution that ends a branch")
@pytest.mark.parametrize("layer", ["layer3", "layer3.2.conv2"])
def test_grad_cam(layer):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, x = trained("resnet20_cifar_patchnorm_ws"), torch.randn(1, 3, 32, 32)
    with GradCAM(model=model, target_layers=[model.get_submodule(layer)]) as cam:
        found = cam(input_tensor=x, targets=[ClassifierOutputTarget(3)])
    seen = {}
    with model.get_submodule(layer).register_forward_hook(lambda module, args, out: seen.update(out=out)):
        logit = model(x)[0, 3]
    (gradient,) = torch.autograd.grad(logit, seen["out"])
    expected = (gradient.mean((2, 3), keepdim=True) * seen["out"]).sum(1).relu()[0]
    expected = expected - expected.min()
    expected = nn.functional.interpolate((expected / (1e-7 + expected.max()))[None, None], (32, 32), mode="bilinear")
    assert found.shape == (1, 32, 32)
    assert abs(torch.from_numpy(found[0]) - expected[0, 0].detach()).mean() < 0.02  # resized by another library


@client("opacus", "per-sample gradients of a vision transformer")
@pytest.mark.parametrize("name", ["vit_nano_patch4_32_affinelike", "vit_nano_patch4_32_normlike"])
def test_opacus(name):
    from opacus import GradSampleModule

    model = timm.create_model(name, depth=2)
    for p in (model.cls_token, model.pos_embed):
        p.requires_grad = False  # opacus takes parameters of layers only
    x, labels = torch.randn(3, 3, 32, 32), torch.tensor([1, 2, 3])
    sampled = GradSampleModule(model, loss_reduction="sum")
    nn.functional.cross_entropy(sampled(x), labels, reduction="sum").backward()
    found = {key: p.grad_sample for key, p in model.named_parameters() if p.requires_grad}
    for i in range(3):
        model.zero_grad()
        loss = nn.functional.cross_entropy(sampled._module(x[i : i + 1]), labels[i : i + 1])
        names, parameters = zip(*((k, p) for k, p in model.named_parameters() if p.requires_grad), strict=True)
        for key, gradient in zip(names, torch.autograd.grad(loss, parameters), strict=True):
            torch.testing.assert_close(found[key][i], gradient, rtol=1e-3, atol=1e-5)


@client("openvino", "`convert_model`")
@pytest.mark.parametrize("name", ["resnet20_cifar_patchnorm_ws", "vit_nano_patch4_32_affinelike"])
def test_openvino(name):
    import openvino

    model, x = trained(name), torch.randn(2, 3, 32, 32)
    converted = openvino.convert_model(model, example_input=x)
    found = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x.numpy())[0]
    torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), rtol=1e-3, atol=1e-4)


PAIRS = [("resnet18", "resnet18_patchnorm", 64), ("vit_tiny_patch16_224", "vit_tiny_patch16_224_affinelike", 224)]


@client("thop", "multiply-adds, within 1 % of timm's network")
@pytest.mark.parametrize(("plain", "ours", "size"), PAIRS)
def test_thop(plain, ours, size):
    import thop

    x = torch.randn(1, 3, size, size)
    counts = [thop.profile(timm.create_model(name), (x,), verbose=False)[0] for name in (plain, ours)]
    assert counts[1] == pytest.approx(counts[0], rel=0.01)


@client("ptflops", "multiply-adds, within 1 % of timm's network")
@pytest.mark.parametrize(("plain", "ours", "size"), PAIRS)
def test_ptflops(plain, ours, size):
    from ptflops import get_model_complexity_info

    counts = [
        get_model_complexity_info(timm.create_model(name), (3, size, size), False, as_strings=False)[0]
        for name in (plain, ours)
    ]
    assert counts[1] == pytest.approx(counts[0], rel=0.01)


@client("fvcore", "multiply-adds, within 3 % of timm's network")
@pytest.mark.parametrize(("plain", "ours", "size"), PAIRS)
def test_fvcore(plain, ours, size):
    from fvcore.nn import FlopCountAnalysis

    counts = [
        FlopCountAnalysis(timm.create_model(name).eval(), torch.randn(1, 3, size, size)).total()
        for name in (plain, ours)
    ]
    assert counts[1] == pytest.approx(counts[0], rel=0.03)
