"""The command line: thin over the same functions as the scripts."""

import csv
import json
import re

import pytest
import timm
import torch
from forks import run_forked
from pictures import draw_folder
from runs import ROOT, TINY, invoke, train_here
from safetensors.torch import load_file, save_file
from yaml import safe_load

import affnorm_zoo
import affnorm_zoo.run
from affnorm_zoo.cli import cli
from affnorm_zoo.errors import UsageError
from affnorm_zoo.hub import export_run, index
from affnorm_zoo.hub.index import bundled
from affnorm_zoo.models import zoo_models


def call(*arguments, code=0):
    result = invoke(cli, *arguments)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    for name in ("one", "two"):
        train_here(folder / name, f"train.seed={len(name) + ord(name[0])}")
        export_run(folder / name)
    return folder


def test_it_lists_the_zoo_and_says_what_a_model_is():
    assert call("list").split() == zoo_models()
    assert call("list", "resnet50_*").split() == timm.list_models("resnet50_patchnorm*")
    stored = [manifest["evaluation"]["model"] for manifest in bundled()]
    assert call("list", "--pretrained").split() == stored
    assert affnorm_zoo.list_pretrained() == stored
    text = call("info", "resnet50_patchnorm")
    assert "25.53 M" in text
    assert "4.09 GMACs per image of 224 px" in text
    assert "none published" in text
    assert "patchnorm: " in text
    assert "did you mean resnet50_patchnorm" in call("info", "resnet50_pachnorm", code=2)


def test_it_says_what_the_model_of_an_export_is(exports, tmp_path):
    text = call("info", exports / "one" / "export")
    size = sum(tensor.numel() for tensor in load_file(exports / "one" / "export" / "model.safetensors").values())
    assert f"{size / 1e6:.2f} M" in text
    assert "image of 8 px" in text
    assert "patchnorm: " in text
    assert "is not an export folder: it has no config.json" in call("info", tmp_path, code=2)


def test_the_page_of_models_has_every_model_and_the_sizes_that_they_have(monkeypatch):
    page = (ROOT / "docs/models.md").read_text()
    names = re.findall(r"^\| `(\w+)` \|", page.partition("## Sizes")[2], re.MULTILINE)
    assert names == zoo_models()
    monkeypatch.setattr(index, "zoo_models", lambda: names[::50])  # a size takes a second
    table = call("list", "--table")
    head, _, rest = table.partition("## Architectures")
    _, _, rows = rest.partition("## Sizes")
    assert page.startswith(head)
    assert set(rows.splitlines()) <= set(page.splitlines())


def test_print_config_reads_back(tmp_path):
    text = call("train", "configs/digits/resnet20_cifar_patchnorm.yaml", "optim.lr=0.1", "--print-config")
    assert safe_load(text)["optim"]["lr"] == 0.1
    (tmp_path / "config.yaml").write_text(text)
    assert call("train", tmp_path / "config.yaml", "--print-config") == text


def test_a_dry_run_says_what_it_will_cost_and_writes_nothing(tmp_path):
    result = run_forked(
        "-m", "affnorm_zoo.cli", "train", *TINY, "optim.lr=null", "optim.lr_base=1e-3", "--dry-run",
        "--output", tmp_path / "run",
    )  # fmt: skip
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert lines["parameters"] == "0.08 M"
    assert "GMACs per image" in lines["forward"]
    assert lines["batch"] == "256 images per update: 1 processes x 2 micro-batches x 128"
    assert lines["updates"] == "5 per epoch, 10 in total"
    assert "0.001 at its peak" in result.stdout
    assert "for activations" in result.stdout
    assert not list(tmp_path.iterdir())


def test_many_models_are_measured_and_the_odd_one_is_named(exports, tmp_path):
    table = tmp_path / "results.csv"
    result = run_forked(
        "scripts/evaluate.py", exports / "*/export", "resnet56_cifar_patchnorm", "runtime.device=cpu", "--results",
        table, ok=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert "no pretrained weights for resnet56_cifar_patchnorm" in result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["model"] for row in rows] == [str(exports / name / "export") for name in ("one", "two")]
    for row, name in zip(rows, ("one", "two"), strict=True):
        report = json.loads((exports / name / "report.json").read_text())
        assert (row["top1"], row["top5"]) == (report["val"]["top1"], report["val"]["top5"])
        assert row["ece"] == pytest.approx(report["val"]["ece"], abs=1e-6)
    with table.open() as file:
        (best, worst) = csv.DictReader(file)
    assert list(best) == [
        "model", "top1", "top1_err", "top5", "top5_err", "param_count", "img_size", "crop_pct", "interpolation",
    ]  # fmt: skip
    assert float(best["top1"]) == pytest.approx(100 * max(row["top1"] for row in rows), abs=1e-4)
    assert float(best["top1"]) >= float(worst["top1"])
    assert float(best["top1"]) + float(best["top1_err"]) == pytest.approx(100)


def test_divergence_is_measured_side_by_side(tmp_path):
    output = tmp_path / "divergence.json"
    names = ("resnet20_cifar_patchnorm", "--vs", "resnet20_cifar_batchnorm")
    text = call("divergence", *names, "--images", 4, "--batch-size", 2, "--optimizer", "adamw", "--output", output)
    results = json.loads(output.read_text())
    ours, theirs = (result["layers"] for result in results["models"].values())
    assert max(row["cv"] for row in ours if row["kind"] == "PatchNormConv2d") < 1e-4
    assert max(row["cv"] for row in theirs if row["kind"] == "Conv2d") > 0.1
    assert {row["self_factor"]["n"] for row in ours} == {4}
    assert [row["layer"] for row in ours] == [row["layer"] for row in theirs]
    assert all(-1 <= row["cosine"] <= 1 for result in results["models"].values() for row in result["steps"])
    assert text.count("layer1.0.conv1") == 2
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_divergence_names_what_is_wrong_with_its_arguments(tmp_path):
    assert "did you mean" in call("divergence", "resnet20_cifar_pachnorm", code=2)
    assert "name a model" in call("divergence", "data.workers=0", code=2)
    small = ("divergence", "resnet20_cifar_patchnorm", "--images", 2, "--steps", 0)
    assert "is not a file" in call(*small, "--checkpoint", tmp_path / "none", code=2)
    save_file({"one": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("text")
    for name in ("other", "text"):
        assert "does not fit the model" in call(*small, "--checkpoint", tmp_path / f"{name}.safetensors", code=2)


NUMBERS_OUT_OF_RANGE = [
    ("evaluate", "x", "--batch-size", 0), ("evaluate", "x", "--batch-size", -1), ("divergence", "x", "--images", 0),
    ("divergence", "x", "--batch-size", 0), ("divergence", "x", "--steps", -1), ("divergence", "x", "--seed", -1),
    ("divergence", "x", "--seed", 2**32), ("divergence", "x", "--lr", -1), ("demo", "x", "--port", 70000),
    ("convert", "x", "--output", "y", "--images", 0), ("convert", "x", "--output", "y", "--seed", -1),
]  # fmt: skip


@pytest.mark.parametrize("arguments", NUMBERS_OUT_OF_RANGE, ids=lambda arguments: " ".join(map(str, arguments)))
def test_a_number_out_of_range_is_refused_before_anything_runs(arguments):
    assert f"Invalid value for '{arguments[-2]}': {arguments[-1]}" in call(*arguments, code=2)


@pytest.mark.parametrize("kind", ["folder", "below a file", "zero byte", "too long", "not Unicode"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_runs(kind, tmp_path):
    (tmp_path / "file").write_text("")
    names = {"folder": "", "below a file": "file/x.csv", "zero byte": "a\0b", "too long": "x" * 300,
             "not Unicode": "caf\udce9/x.csv"}  # fmt: skip
    path = tmp_path / names[kind]
    for option in (("evaluate", "x", "--results"), ("divergence", "x", "--output"), ("divergence", "x", "--maps"),
                   ("pack", "--output")):  # fmt: skip
        wanted = "is not a file that can be written" if kind in ("folder", "below a file") else "is not a usable path"
        assert wanted in call(*option, path, code=2)
    assert call("evaluate", "x", "--results", tmp_path / "new/folder/x.csv", code=2).startswith("error: model 'x'")


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "model '' is not known"), ("local-dir:", "no model id / path"), ("hf-hub:", "no model id / path"),
     ("foo:bar", "Unknown model source 'foo'")],
)  # fmt: skip
def test_a_name_that_means_no_model_is_refused_in_a_line(name, message):
    printed = call("evaluate", name, code=2)
    assert printed.startswith("error: ")
    assert message in printed
    assert len(printed.strip().splitlines()) == 1


def test_a_pattern_without_a_match_is_an_error(tmp_path):
    assert "no folder matches" in call("evaluate", f"{tmp_path}/*/export", code=2)
    assert "no timm model with weights matches" in call("evaluate", "zzz*", code=2)


def test_any_timm_script_knows_the_zoo(tmp_path):
    script = tmp_path / "validate.py"
    (tmp_path / "helper.py").write_text("WORD = 'beside'\n")
    script.write_text(
        "import sys, timm, helper\n"
        "if __name__ == '__main__':\n"
        "    model = timm.create_model(sys.argv[1], num_classes=int(sys.argv[2]))\n"
        "    print(type(model).__name__, model.num_classes, helper.WORD)\n"
    )
    command = ["-m", "affnorm_zoo.run"]
    by_path = [affnorm_zoo.run.__file__]  # as timm's bulk_runner.py starts its children
    for start in (command, by_path):
        result = run_forked(*start, script, "resnet18_patchnorm", "7", cwd=tmp_path, fresh=True)
        assert result.stdout.split() == ["NormalizedResNet", "7", "beside"]
    result = run_forked(*command, "nothing.py", ok=False)
    assert result.returncode == 1
    assert "SCRIPT must be a file, got nothing.py" in result.stderr


def test_the_loop_can_be_timed(tmp_path):
    output = tmp_path / "loop.json"
    run_forked("scripts/benchmark.py", "loop", *TINY, "--rounds", 2, "--updates", 2, "--output", output)
    results = json.loads(output.read_text())
    assert results["loop_to_bare_step"] == results["loop"]["median"] / results["bare_step"]["median"]
    assert results["in_memory_to_workers"] > 1


def test_a_path_with_an_equals_sign_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "lr=0.1", tmp_path / "data.path=x"):
        folder.mkdir()
        (folder / "config.yaml").write_text("train: {epochs: 3}")
    (tmp_path / "lr=0.2").write_text("train: {epochs: 4}")
    for path, epochs in ((tmp_path / "lr=0.1/config.yaml", 3), ("lr=0.1/config.yaml", 3), ("lr=0.2", 4)):
        assert safe_load(call("train", path, "optim.lr=0.5", "--print-config"))["train"]["epochs"] == epochs
    assert "lr=0.1 is not an export folder" in call("evaluate", "lr=0.1", code=2)


def test_a_tilde_is_the_home_folder_wherever_a_path_begins_with_it(tmp_path, monkeypatch, exports):
    monkeypatch.setenv("HOME", str(tmp_path))
    pictures = draw_folder(tmp_path / "pictures", classes=tuple("0123456789"), size=8)
    (tmp_path / "config.yaml").write_text("data: {path: ~/pictures}")
    text = call("train", "~/config.yaml", "--dry-run", *TINY, "train.global_batch_size=16", "train.micro_batch_size=16")
    assert "5 per epoch" in text
    (tmp_path / "export").symlink_to(exports / "one/export")
    call("evaluate", "~/export", "--results=~/results.csv")
    assert (tmp_path / "results.csv").is_file()
    assert pictures.is_dir()
    with pytest.raises(UsageError, match=r"--resume ~nobody/run: there is no such folder"):
        train_here(tmp_path / "run", resume="~nobody/run")


def test_data_in_the_folder_at_hand_have_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(draw_folder(tmp_path / "photos"))
    small = ("data.image_size=16", "train.global_batch_size=8", "train.micro_batch_size=8", "train.max_updates=1")
    assert train_here(tmp_path / "run", "data.path=.", *small)["data"] == "photos"
    card = (export_run(tmp_path / "run") / "README.md").read_text()
    assert "| data | photos, 24 training images |" in card
    assert "path: photos" in card
