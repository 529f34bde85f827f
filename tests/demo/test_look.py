"""What the demo shows, without its page."""

import sys

import numpy as np
import pytest
import torch
from forks import run_forked
from PIL import Image
from runs import invoke

import affnorm_zoo
from affnorm_zoo.cli import cli
from affnorm_zoo.demo import Subject, find_twin, look, open_picture
from affnorm_zoo.errors import UsageError

OURS, STANDARD = "resnet20_cifar_patchnorm_ws.c10_e15", "resnet20_cifar_batchnorm.c10_e15"


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    return open_picture(tmp_path / "noise.png")


def test_every_packaged_model_finds_its_standard_twin():
    names = affnorm_zoo.list_pretrained()
    assert find_twin(OURS, names) == STANDARD
    assert find_twin("vit_nano_patch4_32_normlike.c10_e15", names) == "vit_nano_patch4_32_layernorm.c10_e15"
    assert find_twin(STANDARD, names) is None
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


def test_gradio_is_imported_by_the_page_alone_and_its_absence_is_one_line(monkeypatch):
    imports = "import sys, affnorm_zoo.cli, affnorm_zoo.demo; sys.exit('gradio' in sys.modules)"
    run_forked("-c", imports, fresh=True)
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = invoke(cli, "demo")
    assert result.exit_code == 2
    assert result.output == "error: the demo needs Gradio: pip install 'affnorm-zoo[demo]'\n"
