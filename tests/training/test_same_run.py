"""What a run must share with the checkpoint that it goes on from, and what it may change."""

import json
import logging
import shutil
from dataclasses import fields
from importlib.metadata import version

import pytest
from forks import run_forked
from runs import EVERYTHING, TINY, metrics, state, train_here

from affnorm_zoo.config import RuntimeConfig, flatten, load_config
from affnorm_zoo.errors import UsageError
from affnorm_zoo.runs import resume
from affnorm_zoo.runs.resume import FREE, NOTED, check_same_run

REFUSED = {
    "epochs": (("train.epochs=3",), "train.epochs was 2 and is 3"),
    "rate": (("optim.lr=0.002",), r"optim.lr was 0.001 and is 0.002"),
    "model": (("model.name=resnet56_cifar_patchnorm",), "model.name was resnet20_cifar_patchnorm"),
    "seed": (("train.seed=1",), "train.seed was 0 and is 1"),
    "batch": (("train.global_batch_size=128",), "train.global_batch_size was 256 and is 128"),
    "augmentation": (("data.hflip=0.1",), "data.hflip was 0.5 and is 0.1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_resume_that_is_another_run_is_refused(case, whole, tmp_path):
    overrides, message = REFUSED[case]
    with pytest.raises(UsageError, match=message) as caught:
        train_here(tmp_path / "run", *EVERYTHING, *overrides, resume=str(whole / "checkpoints/window_00000005"))
    assert "--allow-changes" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_other_data_is_refused(whole, tmp_path, monkeypatch):
    from affnorm_zoo.data import Source

    described = Source.describe
    monkeypatch.setattr(Source, "describe", lambda source: {**described(source), "num_train": 1000})
    with pytest.raises(UsageError, match="num_train was 1437 and is 1000"):
        train_here(tmp_path / "run", *EVERYTHING, resume=str(whole / "checkpoints/window_00000005"))


def test_changes_are_accepted_when_asked_for_and_written_down(whole, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        train_here(
            tmp_path, *EVERYTHING, "train.epochs=3", "train.micro_batch_size=64",
            resume=str(whole / "checkpoints/window_00000010"), allow_changes=True,
        )  # fmt: skip
    (entry,) = json.loads((tmp_path / "run.json").read_text())["resumes"]
    assert entry["notes"] == ["train.epochs was 2 and is 3", "train.micro_batch_size was 128 and is 64"]
    assert "not be bit-equal" in caplog.text
    assert state(tmp_path)["epoch"] == 3


@pytest.mark.parametrize("name", sorted(NOTED))
def test_another_way_of_rounding_is_noted(name, whole):
    config = load_config([whole / "config.yaml"])
    was = flatten(config)[name]
    special = {"train.micro_batch_size": 64, "runtime.precision": "bf16", "runtime.compile_mode": "reduce-overhead"}
    now = special.get(name, not was)
    changes = {name: now} | ({"runtime.compile": True} if name == "runtime.compile_mode" else {})
    changed = load_config([whole / "config.yaml"], [f"{key}={value}" for key, value in changes.items()])
    facts = json.loads((whole / "run.json").read_text())["facts"]
    notes = check_same_run(whole / "checkpoints/window_00000005", changed, facts, allow_changes=False)
    assert notes == sorted(f"{key} was {flatten(config)[key]} and is {value}" for key, value in changes.items())


def test_nothing_of_where_and_how_fast_is_refused():
    assert {f"runtime.{field.name}" for field in fields(RuntimeConfig)} <= FREE | NOTED


def test_another_version_is_noted(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "package_version", lambda name: "99.0" if name == "timm" else version(name))
    train_here(tmp_path, *EVERYTHING, resume=str(whole / "checkpoints/window_00000005"))
    (entry,) = json.loads((tmp_path / "run.json").read_text())["resumes"]
    assert entry["notes"] == [f"version of timm was {version('timm')} and is 99.0"]


def test_another_number_of_processes_is_noted(whole, tmp_path):
    cut = tmp_path / "cut"
    train_here(cut, "train.max_updates=4", "optim.lr=1e-4")
    shutil.copytree(cut, tmp_path / "one")
    rest = ("scripts/train.py", *TINY, "optim.lr=1e-4", "--resume", "auto", "--output")
    result = run_forked(*rest, cut, processes=2)
    assert "num_processes was 1 and is 2" in result.stderr
    train_here(tmp_path / "one", "optim.lr=1e-4", resume="auto")
    one, two = metrics(tmp_path / "one", "update"), metrics(cut, "update")
    assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], rel=1e-5)


def test_a_path_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UsageError, match="there is no such folder; give auto, none or the path of a checkpoint"):
        train_here(tmp_path / "run", resume=str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="is not a complete checkpoint"):
        train_here(tmp_path / "run", resume=str(tmp_path))
