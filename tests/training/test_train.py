"""The scripts, as a user runs them, and their commands in this process."""

import json

import pytest
import timm
import torch
from forks import run_forked
from pictures import draw_folder
from runs import ROOT, SHALLOW, invoke, metrics, run
from safetensors.torch import load_file

from affnorm_zoo.cli.evaluate import evaluate
from affnorm_zoo.cli.train import train
from affnorm_zoo.config import load_config
from affnorm_zoo.data import Digits, Normalize, Preprocessing, eval_loader

FAST = ["model.name=resnet20_cifar_patchnorm", SHALLOW, "train.epochs=2", "runtime.device=cpu"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert invoke(train, *FAST, "--output", folder).exit_code == 0
    return folder


@pytest.mark.parametrize(
    ("overrides", "least"), [(["train.epochs=3"], 0.3), pytest.param([], 0.95, marks=pytest.mark.slow)]
)
def test_the_default_reads_digits(tmp_path, overrides, least):
    """The embedded default, as the README's first command runs it."""
    folder = tmp_path / "digits"
    result = run("scripts/train.py", *overrides, "--output", folder)
    report = json.loads((folder / "report.json").read_text())
    assert report["val"]["num_images"] == 360
    assert report["val"]["top1"] >= least
    assert report["seconds"] < 180
    assert len(metrics(folder)) == report["epochs"]
    assert f"top-1 {100 * report['val']['top1']:.2f} %" in result.stdout
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "metrics.jsonl", "model.safetensors", "report.json", "export", "run.json", "run_state.json",
        "run.lock", "checkpoints", "curves.png",
    }  # fmt: skip
    assert load_config([folder / "config.yaml"]) == load_config(overrides=overrides)


def test_the_export_loads_in_a_fresh_process_with_identical_logits(finished, tmp_path):
    code = (
        "import sys, torch, timm, affnorm_zoo\n"
        "from safetensors.torch import save_file\n"
        "model = timm.create_model('local-dir:' + sys.argv[1], pretrained=True).eval()\n"
        "save_file({'logits': model(torch.linspace(-1, 1, 320).reshape(5, 1, 8, 8)).detach()}, sys.argv[2])\n"
    )
    run_forked("-c", code, finished / "export", tmp_path / "out.safetensors", fresh=True)
    model = timm.create_model("resnet20_cifar_patchnorm", in_chans=1, layers=[1, 1, 1]).eval()
    model.load_state_dict(load_file(finished / "model.safetensors"))
    expected = model(torch.linspace(-1, 1, 320).reshape(5, 1, 8, 8))
    assert torch.equal(load_file(tmp_path / "out.safetensors")["logits"], expected)


def test_the_export_is_complete_and_safe(finished):
    export = finished / "export"
    assert {path.name for path in export.iterdir()} == {"README.md", "config.json", "model.safetensors", "curves.png"}
    config = json.loads((export / "config.json").read_text())
    assert config["architecture"] == "resnet20_cifar_patchnorm"
    assert config["pretrained_cfg"]["input_size"] == [1, 8, 8]
    assert config["label_names"] == [str(digit) for digit in range(10)]
    assert "airplane" not in (export / "config.json").read_text()  # the class of the architecture's own weights
    card = (export / "README.md").read_text()
    top1 = json.loads((finished / "report.json").read_text())["val"]["top1"]
    assert f"| top-1 | {100 * top1:.2f} %" in card
    assert "import affnorm_zoo" in card
    assert "library_name: timm" in card


def test_evaluate_reproduces_the_recorded_numbers(finished):
    recorded = json.loads((finished / "report.json").read_text())["val"]
    for name in (finished / "export", f"local-dir:{finished / 'export'}"):
        measured = json.loads(invoke(evaluate, name).stdout)
        assert (measured["top1"], measured["num_images"]) == (recorded["top1"], recorded["num_images"])
        assert measured["loss"] == pytest.approx(recorded["loss"], rel=1e-6)


def test_accuracy_equals_a_plain_count(finished):
    report = json.loads((finished / "report.json").read_text())
    model = timm.create_model(f"local-dir:{finished / 'export'}", pretrained=True).eval()
    preprocessing = Preprocessing(**report["preprocessing"])
    ((images, labels),) = eval_loader(Digits("val"), preprocessing, batch_size=360)
    right = model(Normalize(preprocessing, torch.device("cpu"))(images)).argmax(1) == labels
    assert right.sum().item() / 360 == report["val"]["top1"]


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path):
    short = [*FAST, "train.epochs=1", "optim.warmup_epochs=0"]
    run_forked("scripts/train.py", *short, "--output", tmp_path / "a")
    for name, seed in (("b", 0), ("c", 1)):
        assert invoke(train, *short, f"train.seed={seed}", "--output", tmp_path / name).exit_code == 0
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["conv1.weight"], c["conv1.weight"])


def test_two_processes_train_what_one_does(tmp_path):
    slow = [*FAST, "train.epochs=1", "optim.warmup_epochs=0", "optim.lr=1e-4", "runtime.deterministic=true"]
    run_forked("scripts/train.py", *slow, "--output", tmp_path / "one")
    run_forked("scripts/train.py", *slow, "--output", tmp_path / "two", processes=2)
    run_forked("scripts/train.py", *slow, "train.micro_batch_size=16", "--output", tmp_path / "accumulated")
    one, two, accumulated = (metrics(tmp_path / name, kind="update") for name in ("one", "two", "accumulated"))
    # the same images an update; sums are taken in another order, which a small learning rate does not amplify
    for record, *others in zip(one, two, accumulated, strict=True):
        for other in others:
            assert other["update"] == record["update"]
            assert other["lr"] == record["lr"]
            assert other["loss"] == pytest.approx(record["loss"], rel=1e-5)
    assert metrics(tmp_path / "two")[-1]["val"]["num_images"] == 360
    assert json.loads((tmp_path / "two" / "report.json").read_text())["num_processes"] == 2


def test_folders_vits_precision_layout_and_clipping_train_too(tmp_path):
    pictures = draw_folder(tmp_path / "pictures", per_class=16)
    run_forked(
        "scripts/train.py", "model.name=vit_nano_patch4_32_affinelike", "model.kwargs.img_size=16",
        f"data.path={pictures}", "data.image_size=16", "data.hflip=0.5", "train.epochs=4", "data.workers=1",
        "train.global_batch_size=16", "optim.clip_grad=1.0", "optim.lr=1e-3", "optim.label_smoothing=0.1",
        "runtime.precision=bf16", "runtime.device=cpu", "--output", tmp_path / "run",
    )  # fmt: skip
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["val"]["top1"] > 0.8
    assert report["precision"] == "bf16"
    measured = run_forked("scripts/evaluate.py", tmp_path / "run/export", f"data.path={pictures}", "data.image_size=16")
    assert json.loads(measured.stdout)["top1"] > 0.8


USAGE = {
    "unknown model": (["model.name=resnet20_cifar_pachnorm"], "did you mean resnet20_cifar_patchnorm"),
    "unknown normaliser option": (["model.kwargs.norm_scale=root"], "norm_scale must be one of 'unit', 'rms', 'rms4'"),
    "unknown model option": (["model.kwargs.depht=3"], "cannot be built with model.kwargs"),
    "unknown key": (["optim.learning_rate=1"], "unknown key 'optim.learning_rate'"),
    "missing config": (["configs/none.yaml"], "does not exist"),
    "missing data": (["data.path=/nowhere/at/all"], "is not a folder"),
    "large batch": (["train.global_batch_size=4096"], "exceeds the 1437 training images"),
    "micro-batch": (["train.micro_batch_size=10"], "must divide 64"),
    "optimiser": (["optim.name=sdg"], "optim.name=sdg"),
}


@pytest.mark.parametrize("case", USAGE)
def test_bad_input_is_one_line_and_leaves_nothing(case, tmp_path):
    arguments, message = USAGE[case]
    output = tmp_path / "run"
    result = invoke(train, *arguments, "runtime.device=cpu", "--output", output)
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1, result.output
    assert not output.exists()


def test_a_used_folder_is_refused(finished):
    before = (finished / "report.json").read_bytes()
    result = run_forked("scripts/train.py", *FAST, "--output", finished, ok=False)
    assert result.returncode == 2
    assert "already in use" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert (finished / "report.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere/export"], "there is no such folder; for a repository of the Hub write hf-hub:nowhere/export"),
        (["resnet20_cifar_patchnrm"], "did you mean resnet20_cifar_patchnorm"),
        (["resnet18_patchnorm"], "there are no pretrained weights for resnet18_patchnorm"),
        ([str(ROOT)], "is not an export folder: it has no config.json"),
    ],
)
def test_evaluate_says_what_is_wrong_with_a_model(arguments, message):
    result = invoke(evaluate, *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_a_checkpoint_of_another_architecture_is_refused(finished, tmp_path):
    export = tmp_path / "export"
    export.mkdir()
    (export / "model.safetensors").write_bytes((finished / "export/model.safetensors").read_bytes())
    config = json.loads((finished / "export/config.json").read_text())
    config["architecture"] = "resnet20_cifar_batchnorm"
    (export / "config.json").write_text(json.dumps(config))
    result = invoke(evaluate, export)
    assert result.exit_code == 2
    assert "could not be loaded" in result.output


def test_divergence_is_reported_and_no_weights_are_left(tmp_path):
    output = tmp_path / "run"
    overrides = "model.name=resnet20_cifar_none", "optim.name=sgd", "optim.lr=1e9", "optim.warmup_epochs=0"
    result = invoke(train, *FAST, *overrides, "--output", output)
    assert result.exit_code == 1
    assert "training diverged" in result.output
    assert not (output / "model.safetensors").exists()
