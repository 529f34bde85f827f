"""Every weight file in the package is what its manifest, its golden outputs and its accuracy say."""

import io
import json
import math
import tarfile
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from affnorm_zoo import list_pretrained
from affnorm_zoo.hub.bundle import MAX_BYTES
from affnorm_zoo.hub.index import bundled
from affnorm_zoo.hub.release import check_card, check_golden
from affnorm_zoo.models import WEIGHTS_FOLDER, tag_args
from affnorm_zoo.runs.files import sha256_of

NAMES = [manifest["evaluation"]["model"] for manifest in bundled()]


@pytest.fixture(scope="module")
def photographs():
    """The first ten test images of every class of CIFAR-10, as JPEG."""
    found = []
    with tarfile.open(Path(__file__).with_name("cifar10_sample.tar")) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        classes = sorted({Path(member.name).parent.name for member in members})
        for member in members:
            image = Image.open(io.BytesIO(archive.extractfile(member).read())).convert("RGB")
            found.append((image, classes.index(Path(member.name).parent.name)))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_weight_is_what_was_published(name, photographs):
    folder = WEIGHTS_FOLDER / name
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"].keys() == {path.name for path in folder.iterdir()} - {"manifest.json"}
    for file, described in manifest["files"].items():
        assert sha256_of(folder / file) == described["sha256"], file
    check_card(folder / "README.md")
    assert manifest["note"] in (folder / "README.md").read_text()

    model = timm.create_model(name, pretrained=True).eval()
    check_golden(model, folder / "golden.safetensors")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    images = torch.stack([transform(image) for image, _ in photographs])
    labels = torch.tensor([label for _, label in photographs])
    with torch.no_grad():
        top1 = (model(images).argmax(1) == labels).double().mean().item()
    expected = manifest["evaluation"]["top1"]
    four_deviations = 4 * math.sqrt(expected * (1 - expected) / len(labels))  # of a hundred draws
    if "JPEG" in manifest["note"]:
        assert abs(top1 - expected) <= four_deviations
    else:  # trained on other pixels than the sample's; a wrong order of classes or normalisation would give a tenth
        assert 0.5 < top1 <= expected + four_deviations


@pytest.mark.parametrize("name", NAMES)
def test_the_plain_name_finds_the_best_weights_that_need_no_arguments(name):
    plain = name.split(".")[0]
    scores = {}
    for other in NAMES:
        manifest = json.loads((WEIGHTS_FOLDER / other / "manifest.json").read_text())
        if other.split(".")[0] == plain and not manifest["model_args"]:
            scores[other] = manifest["evaluation"]["top1"]
    first = max(scores, key=scores.get)
    by_tag, by_name = (timm.create_model(n, pretrained=True) for n in (name, plain))
    assert by_name.pretrained_cfg["file"] == str(WEIGHTS_FOLDER / first / "model.safetensors")
    assert tag_args(plain) == {}  # else the name alone would not be the model that it says
    assert by_tag.pretrained_cfg["label_names"][0] == "airplane"
    others = timm.create_model(name, pretrained=True, num_classes=7)
    assert torch.equal(others.state_dict()[min(others.state_dict())], by_tag.state_dict()[min(others.state_dict())])


def test_a_tag_stands_for_the_arguments_of_its_run():
    plain, tag = "resnet20_cifar_patchnorm_ws", "c10_e15_rms4"
    rms, rms4, given = (timm.create_model(n).conv1.kappa for n in (plain, f"{plain}.{tag}", f"{plain}.c10_e60"))
    assert rms4 == 4 * rms == 4 * given
    assert timm.create_model(f"{plain}.{tag}", norm_scale="unit").conv1.kappa == 1  # what is said counts more
    assert timm.create_model(plain, pretrained_cfg=tag).conv1.kappa == rms4
    config = timm.get_pretrained_cfg(f"{plain}.{tag}")
    other = timm.create_model(plain, pretrained_cfg=config.to_dict())  # a config has its arguments beside it
    assert other.conv1.kappa == rms
    grey = timm.create_model(f"{plain}.{tag}", pretrained=True, in_chans=1, num_classes=3)
    assert (grey.conv1.in_channels, grey.num_classes) == (1, 3)
    assert grey.conv1.kappa == pytest.approx(rms4 / 3**0.5)


def test_the_package_stays_small():
    assert sorted(NAMES) == NAMES == list_pretrained()
    sizes = [(WEIGHTS_FOLDER / name / "model.safetensors").stat().st_size for name in NAMES]
    assert max(sizes, default=0) <= MAX_BYTES
    assert sum(path.stat().st_size for path in WEIGHTS_FOLDER.rglob("*") if path.is_file()) <= 12e6
