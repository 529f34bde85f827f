"""What travels with the package is the median run, measured as it is stored."""

import json
import shutil
import statistics

import pytest
import timm
import torch
from runs import train_here
from safetensors.torch import load_file

from affnorm_zoo.errors import UsageError
from affnorm_zoo.hub.bundle import bundle
from affnorm_zoo.hub.index import bundled
from affnorm_zoo.hub.release import build_release, check_golden, load_folder
from affnorm_zoo.runs.files import sha256_of


@pytest.fixture
def seeds(finished_runs, tmp_path):
    """Three runs with scores of their own, the best one last."""
    runs = []
    for number, name in enumerate(("resnet", "second", "third")):
        run = shutil.copytree(finished_runs / name.replace("third", "second"), tmp_path / name)
        config = run / "config.yaml"
        config.write_text(config.read_text().replace("seed: 1", f"seed: {number}"))
        runs.append(run)
    return runs


def score(run):
    return json.loads((run / "report.json").read_text())["val"]["top1"]


@pytest.mark.parametrize("half", [False, True])
def test_the_median_run_is_stored_and_measured(seeds, tmp_path, half):
    folder = bundle(seeds, "digits_u2", half=half, folder=tmp_path / "weights")
    assert folder.name == "resnet20_cifar_patchnorm.digits_u2"
    assert 'timm.create_model("resnet20_cifar_patchnorm.digits_u2", pretrained' in (folder / "README.md").read_text()
    (manifest,) = bundled(tmp_path / "weights")
    assert sorted(manifest["scores"]) == sorted(map(score, seeds))
    assert manifest["scores"][0] == statistics.median(map(score, seeds))
    assert manifest["evaluation"]["top1"] == pytest.approx(manifest["scores"][0], abs=3e-3)
    assert manifest["evaluation"]["num_images"] == 360
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16 if half else torch.float32}
    for name, described in manifest["files"].items():
        assert described == {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
    check_golden(load_folder(folder), folder / "golden.safetensors")


def test_what_does_not_fit_the_package_is_refused(seeds, finished_runs, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="differs in"):
        bundle([*seeds, finished_runs / "ema"], "x", folder=tmp_path)
    monkeypatch.setattr("affnorm_zoo.hub.bundle.MAX_BYTES", 10)
    with pytest.raises(UsageError, match="half precision"):
        bundle(seeds, "x", folder=tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_a_run_that_starts_from_a_tag_keeps_the_arguments_of_the_tag(tmp_path):
    name = "resnet20_cifar_patchnorm_ws.c10_e15_rms4"
    train_here(tmp_path / "run", f"model.name={name}", "model.pretrained=true", "train.max_updates=1",
               "data.labels_by_position=true")  # fmt: skip
    folder = bundle([tmp_path / "run"], "digits_u1", folder=tmp_path / "weights")
    assert folder.name == "resnet20_cifar_patchnorm_ws.digits_u1"
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "resnet20_cifar_patchnorm_ws"
    assert config["model_args"]["norm_scale"] == "rms4"
    assert json.loads((folder / "manifest.json").read_text())["model_args"] == {"norm_scale": "rms4"}


def test_arguments_of_the_run_are_stored_with_its_weights(finished_runs, tmp_path):
    folder = bundle([finished_runs / "vit"], "digits_u2", half=True, folder=tmp_path)
    assert folder.name == "vit_nano_patch4_32_affinelike.digits_u2"
    assert json.loads((folder / "manifest.json").read_text())["model_args"] == {"img_size": 8, "depth": 2}


@pytest.mark.parametrize("kind", ["", "hfds/", "wds/"])
def test_a_release_says_nothing_of_the_machine(kind, seeds, tmp_path):
    folder = tmp_path / "somebody/photos"
    folder.mkdir(parents=True)
    config = seeds[0] / "config.yaml"
    config.write_text(config.read_text().replace("path: null", f"path: {kind}{folder}"))
    release = build_release(seeds[0])
    for name in ("config.yaml", "README.md"):
        text = (release / name).read_text()
        assert f"path: {kind}photos" in text
        assert "somebody" not in text


def test_a_model_without_weights_says_so_and_names_what_there_is():
    with pytest.raises(RuntimeError, match=r"no pretrained weights for resnet50_patchnorm: .* or choose one of ") as e:
        timm.create_model("resnet50_patchnorm", pretrained=True)
    assert "\n" not in str(e.value)
    named = str(e.value).split("choose one of ")[1].split(", ")
    assert named == [manifest["evaluation"]["model"] for manifest in bundled()] or named == ["none yet"]
