"""What the demo shows, without its page."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import invoke

import affnorm_zoo
from affnorm_zoo.cli import cli
from affnorm_zoo.demo import Subject, find_twin, look, open_picture
from affnorm_zoo.errors import UsageError

OURS, STANDARD = "resnet20_cifar_patchnorm_ws.c10_e60", "resnet20_cifar_batchnorm.c10_e60"


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    return open_picture(tmp_path / "noise.png")


def test_every_packaged_model_finds_its_standard_twin():
    names = affnorm_zoo.list_pretrained()
    assert find_twin(OURS, names) == STANDARD
    assert find_twin("vit_nano_patch4_32_normlike.c10_e15", names) == "vit_nano_patch4_32_layernorm.c10_e60"
    assert find_twin(STANDARD, [*names, "resnet20_cifar_batchnorm.c10_e60"]) is None
    recipes = ["resnet20_cifar_batchnorm.c10_e15", "resnet20_cifar_batchnorm.c10_e60"]
    for tag, twin in (("c10_e15", 0), ("c10_e60", 1), ("c10_e15_rms4", 0)):
        assert find_twin(f"resnet20_cifar_patchnorm_ws.{tag}", recipes) == recipes[twin]
    assert find_twin("runs/first/export", names) is None


def test_a_picture_is_classified_and_mapped(picture):
    classes, heat, chart = look(picture, [OURS, STANDARD], "layer2.1.conv1")
    subject = Subject.load(OURS)
    with torch.no_grad():
        expected = subject.model(subject.prepare(picture)).softmax(1)[0]
    label_names = subject.model.pretrained_cfg["label_names"]
    assert list(classes) == [label_names[i] for i in expected.argsort(descending=True)[:5]]
    assert list(classes.values()) == pytest.approx(expected.sort(descending=True).values[:5].tolist())
    alone = look(picture, [OURS], "layer2.1.conv1")[1]
    assert heat.width > alone.width
    assert chart.width > 0
    with pytest.raises(UsageError, match=r"'blocks\.0' has no map"):
        look(picture, [OURS], "blocks.0")


def test_what_is_no_picture_is_one_line(tmp_path):
    (tmp_path / "words.png").write_text("no picture")
    with pytest.raises(UsageError, match=r"^words\.png is not a picture that Pillow reads: choose .*$"):
        open_picture(tmp_path / "words.png")


def test_gradio_is_imported_inside_a_function_and_its_absence_is_one_line(monkeypatch):
    source = "".join(path.read_text(encoding="utf-8") for path in Path(affnorm_zoo.__file__).parent.rglob("*.py"))
    indents = re.findall(r"^( *)(?:import|from) gradio\b", source, re.MULTILINE)
    assert indents
    assert all(indents)
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = invoke(cli, "demo")
    assert result.exit_code == 2
    assert result.output == "error: the demo needs Gradio: pip install 'affnorm-zoo[demo]'\n"
