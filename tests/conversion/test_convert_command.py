"""From the command line to a fine-tuned twin: convert, train from the folder, distil."""

import json

import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from parts import parts_of
from pictures import draw_folder
from runs import TINY, invoke, train_here
from torch.nn import functional as F

from affnorm_zoo.cli import cli
from affnorm_zoo.config import load_config
from affnorm_zoo.errors import UsageError
from affnorm_zoo.hub import export_run
from affnorm_zoo.training.assemble import assemble

SOURCE = "resnet20_cifar_batchnorm"
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("data") / "pictures", classes=CIFAR10, per_class=4, size=32)


@pytest.fixture(scope="module")
def converted(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("converted") / "twin"
    result = invoke(cli, "convert", SOURCE, "--data", data, "--output", output, "--images", 24)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[0] == "patchnorm, loads as resnet20_cifar_patchnorm"
    assert result.output.splitlines()[-1] == str(output)
    return output


def parts_on(data, *overrides):
    return parts_of("train.global_batch_size=4", "train.micro_batch_size=4", f"data.path={data}", *overrides)


def starting_from(folder):
    return (f"model.weights={folder}", "model.name=resnet20_cifar_patchnorm", "model.kwargs.norm_scale=rms4")


def test_the_folder_is_what_timm_loads_and_says_what_it_is(converted):
    assert {path.name for path in converted.iterdir()} == {
        "README.md", "config.json", "conversion.json", "model.safetensors",
    }  # fmt: skip
    model = timm.create_model(f"local-dir:{converted}", pretrained=True)
    assert model.conv1.kappa == 4 * model.conv1.c
    assert model.pretrained_cfg["label_names"] == list(CIFAR10)
    report = json.loads((converted / "conversion.json").read_text())
    assert (report["source"], report["normalizer"], report["scale"]) == (SOURCE, "patchnorm", "rms4")
    assert (report["num_images"], report["num_held_out"], len(report["layers"])) == (21, 3, 21)
    card = (converted / "README.md").read_text()
    assert f"Converted from `{SOURCE}`" in card
    assert f"| layer1.0.conv1 | channel | 48 | {report['layers'][1]['share']:.3f} |" in card


def test_an_existing_folder_is_kept(data, converted):
    result = invoke(cli, "convert", SOURCE, "--data", data, "--output", converted)
    assert result.exit_code == 2
    assert result.output == f"error: {converted} exists: choose another --output, or remove it\n"


@torch.no_grad()
def test_a_run_starts_from_the_folder(data, converted):
    model = parts_on(data, *starting_from(converted)).trainer.state.bare_model
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(x), timm.create_model(f"local-dir:{converted}", pretrained=True).eval()(x))


def test_a_config_of_another_model_is_told_its_options(data, converted, tmp_path):
    with pytest.raises(UsageError, match=r"another model: set model.kwargs.norm_scale=rms4$"):
        parts_on(data, f"model.weights={converted}")
    with pytest.raises(UsageError, match=r"set model.name=resnet20_cifar_patchnorm model.kwargs.norm_scale=rms4$"):
        parts_on(data, f"model.weights={converted}", "model.name=resnet20_cifar_patchnorm_ws")
    with pytest.raises(UsageError, match=r"not an export folder: it has no config.json"):
        parts_on(data, f"model.weights={tmp_path}")
    with pytest.raises(UsageError, match=r"model.weights or model.pretrained, not both"):
        parts_on(data, f"model.weights={converted}", "model.pretrained=true")


def loss_and_gradient(parts):
    trainer, found = parts.trainer, {}
    parameter = trainer.state.bare_model.fc.weight
    trainer._step = lambda lr: (found.update(gradient=parameter.grad.clone()), torch.zeros(()))[1]
    next(trainer.windows())
    return trainer.drain()[0].loss, found["gradient"]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distilling_has_the_gradient_of_the_definition(data, converted, temperature):
    overrides = (f"train.distill_from={SOURCE}", f"train.distill_temperature={temperature}", "data.mixup=0.2")
    parts = parts_on(data, *starting_from(converted), *overrides)
    seen = []
    student, teacher = parts.trainer.state.bare_model, timm.create_model(SOURCE, pretrained=True).eval()
    student.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    loss, gradient = loss_and_gradient(parts)
    x = seen[0]
    student.zero_grad()
    theirs, ours = (teacher(x) / temperature).softmax(1).detach(), (student(x) / temperature).log_softmax(1)
    expected = temperature**2 * (theirs * (theirs.log() - ours)).sum() / len(x)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(gradient, student.fc.weight.grad, rtol=1e-3, atol=1e-6)
    assert loss > 0


def test_a_network_has_nothing_to_learn_from_itself(data, converted):
    loss, gradient = loss_and_gradient(parts_on(data, *starting_from(converted), f"train.distill_from={converted}"))
    assert loss.abs() < 1e-6
    assert gradient.abs().max() < 1e-6


def test_the_teacher_sees_the_images_as_it_was_trained(data, converted):
    own = ("data.mean=[0.2, 0.2, 0.2]", "data.std=[0.5, 0.5, 0.5]")
    parts = parts_on(data, *starting_from(converted), f"train.distill_from={SOURCE}", *own)
    photographs = torch.rand(2, 3, 32, 32)
    teacher = timm.create_model(SOURCE, pretrained=True).eval()
    mean, std = (torch.tensor(teacher.pretrained_cfg[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    expected = teacher((photographs - mean) / std)
    torch.testing.assert_close(parts.trainer.teacher((photographs - 0.2) / 0.5), expected, rtol=1e-4, atol=1e-4)


def test_distilling_refuses_what_needs_labels_or_other_classes(data):
    with pytest.raises(UsageError, match=r"train.distill_from takes no labels"):
        parts_on(data, f"train.distill_from={SOURCE}", "optim.label_smoothing=0.1")
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(UsageError, match=r"the weights know 'airplane'"):
        assemble(load_config(overrides=[*TINY, f"train.distill_from={SOURCE}"]), Accelerator(cpu=True))


def test_a_card_names_folders_without_their_place(data, converted, tmp_path):
    overrides = (*starting_from(converted), f"train.distill_from={converted}", f"data.path={data}")
    batch = ("train.max_updates=1", "train.global_batch_size=4", "train.micro_batch_size=4")
    train_here(tmp_path / "run", *overrides, *batch)
    export_run(tmp_path / "run")
    card = (tmp_path / "run/export/README.md").read_text()
    assert "weights: twin" in card
    assert "distill_from: twin" in card
    assert str(converted.parent) not in card
    model = timm.create_model(f"local-dir:{tmp_path / 'run/export'}", pretrained=True)
    assert model.conv1.kappa == 4 * model.conv1.c
    assert F.mse_loss(model.fc.weight, timm.create_model(f"local-dir:{converted}", pretrained=True).fc.weight) < 1e-2
