"""A run that was stopped goes on as if it had not been, or says why it cannot."""

import json
import logging
import shutil
import signal

import pytest
import timm
import torch
from forks import run_forked
from runs import (
    EVERYTHING,
    SMALL_VIT,
    TINY,
    assert_same_run,
    checkpoints,
    kill_at,
    metrics,
    resumed_at,
    state,
    train_here,
)
from safetensors.torch import load_file

from affnorm_zoo.errors import UsageError
from affnorm_zoo.runs import checkpoint
from affnorm_zoo.training import PreemptedError

WRITTEN = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json")


def stop_and_resume(folder, monkeypatch, at, *overrides):
    with monkeypatch.context() as patch:
        kill_at(patch, at)
        with pytest.raises(PreemptedError, match=f"after update {at} "):
            train_here(folder, *overrides)
    assert state(folder)["state"] == "preempted"
    train_here(folder, *overrides, resume="auto")
    assert state(folder)["state"] == "completed"
    assert resumed_at(folder) == [at]


@pytest.mark.parametrize("at", [1, 3, 5, 7])
def test_a_stop_anywhere_changes_no_bit(at, whole, tmp_path, monkeypatch):
    stop_and_resume(tmp_path / "run", monkeypatch, at, *EVERYTHING)
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("data.workers=2", "data.in_memory=never"), marks=pytest.mark.slow),
        ("data.in_memory=never",),
        (
            "train.micro_batch_size=64", "data.repeats=2", "optim.name=sgd", "optim.lr=0.01", "optim.schedule=step",
            "optim.schedule_kwargs.decay_epochs=1",
        ),
        ("data.drop_last=false", "model.name=resnet20_cifar_batchnorm", "data.mixup=0", "data.cutmix=0"),
        ("model.name=resnet20_cifar_patchnorm_c",),
        pytest.param(
            ("runtime.precision=bf16", "optim.name=muon", *SMALL_VIT, "model.kwargs.depth=1",
             "model.kwargs.embed_dim=24"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["workers", "worker pipeline", "accumulation", "short last window", "centred", "bf16"],
)  # fmt: skip
def test_nor_in_other_pipelines(overrides, tmp_path, monkeypatch):
    train_here(tmp_path / "whole", *EVERYTHING, *overrides)
    stop_and_resume(tmp_path / "stopped", monkeypatch, 7, *EVERYTHING, *overrides)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_two_processes_resume_in_fresh_ones(tmp_path):
    arguments = ("scripts/train.py", *TINY, *EVERYTHING)
    run_forked(*arguments, "--output", tmp_path / "whole", processes=2)
    run_forked(*arguments, "train.max_updates=4", "--output", tmp_path / "cut", processes=2)
    assert len(metrics(tmp_path / "cut", "update")) == 4
    run_forked(*arguments, "--output", tmp_path / "cut", "--resume", "auto", processes=2)
    assert resumed_at(tmp_path / "cut") == [4]
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_workers_do_not_change_a_run(tmp_path):
    for workers in (0, 2):
        train_here(tmp_path / str(workers), *EVERYTHING, "data.in_memory=never", f"data.workers={workers}")
    assert_same_run(tmp_path / "0", tmp_path / "2")


def test_ctrl_c_saves_too(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_at(patch, 3, signal.SIGINT)
        with pytest.raises(PreemptedError):
            train_here(tmp_path, *EVERYTHING)
    assert checkpoints(tmp_path) == ["window_00000003"]
    train_here(tmp_path, *EVERYTHING, resume="auto")
    assert resumed_at(tmp_path) == [3]
    assert_same_run(whole, tmp_path)


def test_a_signal_while_evaluating_saves_the_epoch(whole, tmp_path, monkeypatch):
    from affnorm_zoo.training import epochs

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return evaluate(*arguments)

    evaluate = epochs.evaluate
    monkeypatch.setattr(epochs, "evaluate", interrupted)
    with pytest.raises(PreemptedError, match="after update 5"):
        train_here(tmp_path, *EVERYTHING)
    monkeypatch.undo()
    train_here(tmp_path, *EVERYTHING, resume="auto")
    assert resumed_at(tmp_path) == [5]
    assert_same_run(whole, tmp_path)


def test_a_signal_while_saving_lets_the_save_end(whole, tmp_path, monkeypatch):
    from affnorm_zoo.training import checkpoint_policy

    def interrupted(content, folder):
        monkeypatch.undo()  # a second signal would end this process
        signal.raise_signal(signal.SIGTERM)
        save_state(content, folder)

    save_state = checkpoint_policy.save_state
    monkeypatch.setattr(checkpoint_policy, "save_state", interrupted)
    with pytest.raises(PreemptedError):
        train_here(tmp_path, *EVERYTHING, "checkpoint.every_updates=2")
    assert "window_00000002" in checkpoints(tmp_path)
    train_here(tmp_path, *EVERYTHING, "checkpoint.every_updates=2", resume="auto")
    assert_same_run(whole, tmp_path)


def copy_of_stopped(whole, tmp_path, monkeypatch):
    """A run that has saved after updates 5 and 7."""
    with monkeypatch.context() as patch:
        kill_at(patch, 7)
        with pytest.raises(PreemptedError):
            train_here(tmp_path / "run", *EVERYTHING)
    assert checkpoints(tmp_path / "run") == ["best", "window_00000005", "window_00000007"]
    return tmp_path / "run"


def truncate(folder):
    data = (folder / "optimizer.safetensors").read_bytes()
    (folder / "optimizer.safetensors").write_bytes(data[:-5])


def flip_a_bit(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-100] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(data))


def lose_a_file(folder):
    (folder / "ema.safetensors").unlink()


def lose_the_manifest(folder):
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lose_a_file, lose_the_manifest])
def test_a_damaged_checkpoint_is_named_and_passed_over(damage, whole, tmp_path, monkeypatch, caplog):
    folder = copy_of_stopped(whole, tmp_path, monkeypatch)
    newest = folder / "checkpoints" / "window_00000007"
    damage(newest)
    with pytest.raises(UsageError, match=r"window_00000007 is (damaged|not a complete checkpoint)"):
        train_here(tmp_path / "other", *EVERYTHING, resume=str(newest))
    with caplog.at_level(logging.WARNING):
        train_here(folder, *EVERYTHING, resume="auto")
    assert "window_00000007" in caplog.text
    assert "trying an earlier one" in caplog.text
    assert_same_run(whole, folder)


def test_a_finished_run_is_left_alone_and_a_used_folder_is_refused(whole):
    before = (whole / "metrics.jsonl").read_bytes(), (whole / "run.json").read_bytes()
    report = train_here(whole, *EVERYTHING, resume="auto")
    assert report == json.loads((whole / "report.json").read_text())
    assert before == ((whole / "metrics.jsonl").read_bytes(), (whole / "run.json").read_bytes())
    with pytest.raises(UsageError, match="already in use: choose another --output, resume with --resume auto"):
        train_here(whole, *EVERYTHING)


def test_a_cap_that_lies_behind_is_evaluated_and_nothing_more(whole, tmp_path):
    report = train_here(tmp_path, *EVERYTHING, "train.max_updates=2", resume=str(whole / "checkpoints/window_00000005"))
    assert report["windows"] == 5
    train_here(tmp_path / "cut", *EVERYTHING, "checkpoint.every_updates=3", "train.max_updates=3")
    state_file = json.loads((tmp_path / "cut/checkpoints/window_00000003/state.json").read_text())
    assert state_file["progress"]["evaluated"]["update"] == 3


@pytest.mark.parametrize(("was", "now"), [("samples", "images"), ("skips", None)], ids=["renamed", "missing"])
def test_a_field_that_a_checkpoint_lacks_is_an_error(was, now, whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run", symlinks=True)
    folder = run / "checkpoints/window_00000005"

    def rewrite(temporary):
        for name in set(WRITTEN) - {"state.json"}:
            shutil.copy(folder / name, temporary / name)
        content = json.loads((folder / "state.json").read_text())
        value = content["progress"].pop(was)
        content["progress"] |= {now: value} if now else {}
        (temporary / "state.json").write_text(json.dumps(content))

    checkpoint.commit(folder, rewrite)
    with pytest.raises(UsageError, match=rf"state.json lacks {was}( and has the unknown {now})?: read it with"):
        train_here(tmp_path / "other", *EVERYTHING, resume=str(folder))


def test_overwrite_begins_anew(tmp_path):
    train_here(tmp_path, "train.epochs=2", "train.max_updates=3")
    (tmp_path / "mine.txt").write_text("old")
    train_here(tmp_path, "train.epochs=2", "train.max_updates=2", overwrite=True)
    assert not (tmp_path / "mine.txt").exists()
    assert len(metrics(tmp_path, "update")) == 2


def test_metrics_have_each_update_once_after_a_torn_line(whole, tmp_path, monkeypatch):
    folder = copy_of_stopped(whole, tmp_path, monkeypatch)
    shutil.rmtree(folder / "checkpoints" / "window_00000007")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "update", "upda')
    train_here(folder, *EVERYTHING, resume="auto")
    assert [record["update"] for record in metrics(folder, "update")] == list(range(1, 11))
    assert [record["epoch"] for record in metrics(folder, "epoch")] == [1, 2]


def test_what_is_kept_does_not_depend_on_a_stop(tmp_path, monkeypatch):
    keeping = ("train.epochs=4", "checkpoint.keep_last=1", "checkpoint.milestones=[2]", "checkpoint.every_epochs=3")
    train_here(tmp_path / "whole", *keeping)
    stop_and_resume(tmp_path / "stopped", monkeypatch, 12, *keeping)
    kept = checkpoints(tmp_path / "whole")
    assert kept == checkpoints(tmp_path / "stopped")
    assert {"window_00000010", "window_00000020", "best"} <= set(kept)
    report = json.loads((tmp_path / "whole/report.json").read_text())
    best = max(metrics(tmp_path / "whole"), key=lambda record: record["val"]["top1"])
    assert report["best"]["value"] == best["val"]["top1"]
    assert (tmp_path / "whole/checkpoints/best").resolve().name == f"window_{best['window']:08d}"


def test_a_checkpoint_holds_plain_weights_and_no_pickle(whole):
    folder = whole / "checkpoints" / "window_00000010"
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    model = timm.create_model("resnet20_cifar_patchnorm", in_chans=1, layers=[1, 1, 1])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model.load_state_dict(load_file(folder / "ema.safetensors"))
    final = load_file(whole / "model.safetensors")
    assert all(torch.equal(tensor, final[name]) for name, tensor in load_file(folder / "model.safetensors").items())
