"""Frameworks that build, train, explain or export models."""

import pytest
import timm
import torch
from clients.rows import client, trained
from PIL import Image
from torch import nn

from affnorm_zoo.layers import BoundLayer, PatchNormConv2d


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
@pytest.mark.parametrize("name", ["resnet20_cifar_patchnorm.c10_e10", "vit_nano_patch4_32_affinelike.c10_e60"])
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
