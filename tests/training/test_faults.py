"""Numbers that end, workers that die, images that are none."""

import logging
import math
import os

import pytest
import torch
from forks import run_forked
from parts import parts_of
from pictures import draw_folder
from runs import TINY, assert_same_run, checkpoints, metrics, resumed_at, state, train_here
from safetensors.torch import load_file

from affnorm_zoo.data.workers import check_shared_memory
from affnorm_zoo.errors import UsageError
from affnorm_zoo.training import NonFiniteError
from affnorm_zoo.training.state import RunState


def poison(monkeypatch, update, value=math.nan):
    """Make the images of an update (from 0) no numbers."""
    from affnorm_zoo.training.loop import Trainer

    original = Trainer._backward

    def backward(self, images, labels, weight, synchronise):
        if self.state.progress.windows == update:
            images = images.float() * value
        return original(self, images, labels, weight, synchronise)

    monkeypatch.setattr(Trainer, "_backward", backward)


def test_a_gradient_that_is_no_number_stops_before_anything_is_saved(tmp_path, monkeypatch):
    poison(monkeypatch, 6)
    with pytest.raises(NonFiniteError, match=r"norm is nan at update 7, learning rate .*, images [0-9, ]+"):
        train_here(tmp_path)
    assert checkpoints(tmp_path) == ["best", "window_00000005"]
    assert state(tmp_path)["state"] == "failed"
    weights = load_file(tmp_path / "checkpoints/window_00000005/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_or_is_skipped_when_asked_and_moves_nothing(tmp_path, monkeypatch):
    poison(monkeypatch, 3)
    report = train_here(tmp_path, "train.non_finite=skip", "model.ema_decay=0.9")
    assert (report["windows"], report["updates"]) == (10, 9)
    updates = metrics(tmp_path, "update")
    assert [record["window"] for record in updates] == list(range(1, 11))
    assert [record["update"] for record in updates] == [1, 2, 3, 3, 4, 5, 6, 7, 8, 9]
    assert [(record["window"], record["update"]) for record in metrics(tmp_path)] == [(5, 4), (10, 9)]
    assert (state(tmp_path)["window"], state(tmp_path)["update"]) == (10, 9)
    assert updates[3]["grad_norm"] is None
    assert all(record["train"]["loss"] > 0 for record in metrics(tmp_path))
    assert updates[4]["lr"] == updates[3]["lr"]  # the schedule has waited
    assert report["val"]["top1"] > 0.1


def test_a_resume_after_a_skipped_window_loses_and_repeats_no_line(tmp_path, monkeypatch):
    skipping = ("train.non_finite=skip", "model.ema_decay=0.9", "checkpoint.milestones=[1]")
    poison(monkeypatch, 3)
    train_here(tmp_path / "whole", *skipping)
    train_here(tmp_path / "cut", *skipping, "train.max_updates=7")
    train_here(tmp_path / "cut", *skipping, resume="auto")
    assert resumed_at(tmp_path / "cut") == [7]
    assert "window_00000005" in checkpoints(tmp_path / "cut")  # a milestone, the end of the first epoch
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_but_not_for_ever(tmp_path, monkeypatch):
    poison(monkeypatch, 3)
    poison(monkeypatch, 4)
    with pytest.raises(NonFiniteError, match="at update 4, 2 in a row"):
        train_here(tmp_path, "train.non_finite=skip", "train.max_skips=1")
    assert state(tmp_path)["state"] == "failed"


def test_a_metric_that_is_no_number_is_never_the_best(tmp_path, monkeypatch):
    from affnorm_zoo.training import epochs

    evaluate, losses = epochs.evaluate, iter([math.nan, 2.0, math.nan, 1.5])
    monkeypatch.setattr(epochs, "evaluate", lambda *a: {**evaluate(*a), "loss": next(losses)})
    report = train_here(tmp_path, "train.epochs=4", "checkpoint.best_metric=val.loss")
    assert (report["best"]["value"], report["best"]["epoch"]) == (1.5, 4)


def test_pictures_are_not_replaced_in_silence(tmp_path, caplog):
    root = draw_folder(tmp_path / "pictures")
    (root / "train/red/0.png").write_bytes(b"no picture")
    arguments = (f"data.path={root}", "data.image_size=16", "data.crop=none", "data.in_memory=never",
                 "train.global_batch_size=24", "train.micro_batch_size=24")  # fmt: skip
    with pytest.raises(UsageError, match=r"red/0.png cannot be decoded .*max_bad_images"):
        train_here(tmp_path / "strict", *arguments)
    for name, more in (("worker", ()), ("memory", ("data.in_memory=always",))):
        result = run_forked(
            "scripts/train.py", *TINY, *arguments, "data.workers=1", *more, "--output", tmp_path / name, ok=False
        )
        (line,) = result.stderr.strip().splitlines()
        assert line.startswith("error: image red/0.png cannot be decoded")
    with caplog.at_level(logging.WARNING):
        train_here(tmp_path / "lenient", *arguments, "data.max_bad_images=5")
    assert "the next one takes its place (1 of 5 allowed)" in caplog.text


def test_a_worker_that_dies_is_told_with_its_images(tmp_path, monkeypatch):
    from affnorm_zoo.data import Digits

    original = Digits.__getitem__

    def dies(self, index):
        if index == 77 and torch.utils.data.get_worker_info() is not None:
            os._exit(3)
        return original(self, index)

    monkeypatch.setattr(Digits, "__getitem__", dies)
    with pytest.raises(UsageError, match=r"the loader failed at update \d+, epoch 1, images .*worker"):
        train_here(tmp_path, "data.in_memory=never", "data.workers=1", "data.drop_last=false")


def test_a_worker_that_hangs_is_told_too(tmp_path, monkeypatch):
    import time

    from affnorm_zoo.data import Digits

    monkeypatch.setattr(Digits, "__getitem__", lambda self, index: time.sleep(60))
    with pytest.raises(UsageError, match=r"the loader failed at update 1, epoch 1, images .*timed out"):
        train_here(tmp_path, "data.in_memory=never", "data.workers=1", "data.timeout_seconds=2")


def test_workers_that_do_not_fit_into_shared_memory_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"4 workers hold up to .* lower data.workers"):
        check_shared_memory(4, batch_bytes=2**50)
    check_shared_memory(4, batch_bytes=2**10)
    check_shared_memory(0, batch_bytes=2**50)


def test_state_that_cannot_be_saved_is_named():
    parts = parts_of()
    parts.trainer.state.optimizer.state[next(parts.trainer.state.bare_model.parameters())]["thing"] = object()
    with pytest.raises(UsageError, match=r"optim.name cannot be checkpointed: .*thing has type object"):
        RunState.gather(parts.trainer.state)
