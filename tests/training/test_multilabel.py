"""Any number of classes per image: a run learns them, resumes to the bit, and what it exports says so."""

import csv
import json
import shutil

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from click.testing import CliRunner
from huggingface_hub import ModelCard
from pictures import CLASSES, draw_labelled, labelled
from runs import EVERYTHING, SHALLOW, assert_same_run, kill_at, metrics, resumed_at, train_here
from torch.nn import functional as F

from affnorm_zoo.cli import cli
from affnorm_zoo.config import DataConfig, OptimConfig, load_config
from affnorm_zoo.data import BatchAugment, open_source
from affnorm_zoo.demo import Subject
from affnorm_zoo.errors import UsageError
from affnorm_zoo.evaluation import evaluate_model
from affnorm_zoo.hub import export_run
from affnorm_zoo.hub.bundle import bundle
from affnorm_zoo.studies.sweep import SweepConfig, Trial, config_of
from affnorm_zoo.training import PreemptedError
from affnorm_zoo.training.builders import build_loss

SMALL = (SHALLOW, "train.global_batch_size=16", "train.micro_batch_size=16", "optim.lr=4e-3")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw_labelled(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="module")
def learned(data, tmp_path_factory):
    """A run of 24 updates, with its export."""
    run = tmp_path_factory.mktemp("learned") / "run"
    train_here(run, *labelled(data), *SMALL, "train.epochs=8", "runtime.divergence_updates=12", curves=True)
    export_run(run)
    return run


def test_a_run_learns_which_colours_a_picture_shows(learned):
    epochs = metrics(learned)
    assert epochs[-1]["val"]["map"] > 0.99
    assert epochs[-1]["val"]["micro_f1"] > 0.9
    assert epochs[-1]["val"]["num_images"] == 16
    best = json.loads((learned / "report.json").read_text())["best"]
    assert best["metric"] == "val.map"
    assert best["value"] == max(record["val"]["map"] for record in epochs)
    (first, *_) = metrics(learned, "divergence")
    assert max(layer["cv"] for layer in first["layers"] if "conv2" in layer["layer"]) < 1e-3  # patchnorm's factor


def test_what_it_exports_says_so(learned):
    report = json.loads((learned / "report.json").read_text())
    described = json.loads((learned / "export/config.json").read_text())
    assert described["problem_type"] == "multi_label_classification"
    assert described["label_names"] == list(CLASSES)
    card = ModelCard.load(learned / "export/README.md")
    found = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert found == {
        "mean average precision over the classes": report["val"]["map"],
        "micro-F1 at 0.5": report["val"]["micro_f1"],
        "macro-F1 at 0.5": report["val"]["macro_f1"],
    }
    for line in (
        f"| mAP | {100 * report['val']['map']:.2f} % (these weights, seed 0) |",
        f"| macro-F1 at 0.5 | {100 * report['val']['macro_f1']:.2f} % |",
        "| classes that no held-out image shows, left out of the mAP | 0 |",
        "`model(x).sigmoid()` gives the probability of each.",
        "  labels: labels.csv",
    ):
        assert line in card.content, line
    assert str(learned.parents[1]) not in card.content


def test_the_export_measures_the_same_also_with_the_classes_in_another_order(data, learned, tmp_path):
    export, report = str(learned / "export"), json.loads((learned / "report.json").read_text())
    with (data / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (tmp_path / "reversed.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file_name", "split", *CLASSES[::-1]])
        writer.writeheader()
        writer.writerows(rows)
    for labels in (data / "labels.csv", tmp_path / "reversed.csv"):
        AcceleratorState._reset_state(reset_partial_state=True)
        config = DataConfig(path=str(data), task="multilabel", labels=str(labels))
        found = evaluate_model(export, config, open_source(config), Accelerator(cpu=True), batch_size=5)
        assert {key: found[key] for key in ("map", "micro_f1", "macro_f1")} == pytest.approx(
            {key: report["val"][key] for key in ("map", "micro_f1", "macro_f1")}, rel=1e-12
        )


def test_the_command_writes_its_metrics_in_a_table_and_refuses_other_labels(data, learned, tmp_path):
    def call(*arguments):
        AcceleratorState._reset_state(reset_partial_state=True)
        here = ("runtime.device=cpu", "data.num_classes=3", "--results", str(tmp_path / "results.csv"))
        return CliRunner().invoke(cli, ["evaluate", str(learned / "export"), *here, *arguments])

    result = call(*labelled(data))
    assert result.exit_code == 0, result.output
    (row,) = csv.DictReader((tmp_path / "results.csv").open(newline=""))
    assert list(row)[:4] == ["model", "map", "micro_f1", "macro_f1"]
    assert float(row["map"]) == round(100 * json.loads(result.output.splitlines()[-1])["map"], 4)
    for split in ("train", "val"):
        for name in CLASSES:
            (tmp_path / "one" / split / name).mkdir(parents=True)
            shutil.copy(data / "images/0.png", tmp_path / "one" / split / name)
    refused = call(f"data.path={tmp_path / 'one'}")
    assert refused.exit_code == 2
    assert "gives any number of classes per image: set data.task=multilabel and data.labels" in refused.output


def test_the_demo_shows_probabilities_of_their_own(learned):
    subject = Subject.load(str(learned / "export"))
    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    shown = subject.classify(images)
    with torch.no_grad():
        expected = subject.model(images).sigmoid()[0].tolist()
    assert shown == pytest.approx(dict(zip(CLASSES, expected, strict=True)))


def test_a_stop_changes_no_bit_and_other_labels_are_another_run(data, tmp_path, monkeypatch):
    settings = (*labelled(data), *SMALL, *EVERYTHING, "optim.label_smoothing=0.1")
    train_here(tmp_path / "whole", *settings)
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(PreemptedError):
            train_here(tmp_path / "stopped", *settings)
    shutil.copytree(tmp_path / "stopped", tmp_path / "other", symlinks=True)
    train_here(tmp_path / "stopped", *settings, resume="auto")
    assert resumed_at(tmp_path / "stopped") == [4]
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    changed = shutil.copytree(data, tmp_path / "data")
    text = (changed / "labels.csv").read_text()
    (changed / "labels.csv").write_text(text.replace("0.png,train,1,0,1", "0.png,train,1,1,1"))
    with pytest.raises(UsageError, match="labels_sha256 was "):
        train_here(tmp_path / "other", *settings, *labelled(changed), resume="auto")


def test_the_loss_takes_smooth_labels_once():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 4, generator=generator), torch.randint(2, (6, 4), generator=generator).float()
    smooth = 0.8 * labels + 0.1  # a fifth of the way to 1/2
    expected = F.binary_cross_entropy_with_logits(logits, smooth)
    loss = build_loss(OptimConfig(label_smoothing=0.2), mixes=False, multilabel=True)
    assert loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)
    config = DataConfig(task="multilabel", path="x", labels="x", mixup=0.4)
    images = torch.randn(6, 3, 4, 4, generator=generator)
    mixed, targets = BatchAugment(config, 4, 0.2, torch.device("cpu"))(images.clone(), labels)
    share = ((mixed - images.flip(0)) / (images - images.flip(0))).median()  # of an image in its mixture
    torch.testing.assert_close(targets, share * smooth + (1 - share) * smooth.flip(0), rtol=1e-4, atol=1e-4)
    loss = build_loss(OptimConfig(label_smoothing=0.2), mixes=True, multilabel=True)
    assert loss(logits, targets).item() == pytest.approx(
        F.binary_cross_entropy_with_logits(logits, targets).item(), rel=1e-6
    )


def test_its_layers_are_measured_from_the_command_line(data, learned):
    AcceleratorState._reset_state(reset_partial_state=True)
    arguments = ["divergence", str(learned / "export"), *labelled(data), "--images", "8", "--steps", "2"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert "layer3.0.conv2" in result.output


def test_what_is_scored_by_top_1_has_no_place_for_it(data, learned, tmp_path):
    with pytest.raises(UsageError, match=r"weights are scored by top-1, which data.task=multilabel does not measure"):
        bundle([learned], "colours", folder=tmp_path)
    sweep = SweepConfig(arms={"ours": list(labelled(data))}, baseline="ours")
    with pytest.raises(UsageError, match=r"a sweep compares top-1, which data.task=multilabel does not measure"):
        config_of(sweep, Trial(arm="ours", point={}, seed=1, is_final=True))
    assert load_config(overrides=list(labelled(data))).best_metric == "val.map"
