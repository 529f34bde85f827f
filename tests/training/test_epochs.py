"""Epochs without an evaluation, the same data from other places, and compiled steps that replay graphs."""

import json

import pytest
import torch
from parts import parts_of
from pictures import draw_folder
from runs import SMALL_VIT, assert_same_run, checkpoints, kill_at, metrics, resumed_at, train_here

from affnorm_zoo.config import DataConfig, load_config
from affnorm_zoo.data import pack
from affnorm_zoo.errors import UsageError
from affnorm_zoo.training import PreemptedError

NANO = (*SMALL_VIT, "model.kwargs.depth=1", "model.kwargs.embed_dim=24")
FOUR = (*NANO, "train.epochs=4", "checkpoint.every_epochs=4", "model.ema_decay=0.9")
PICTURES = (
    "model.name=vit_nano_patch4_32_affinelike", "model.kwargs.img_size=16", "model.kwargs.depth=1",
    "data.image_size=16", "data.hflip=0.5", "train.global_batch_size=12", "train.micro_batch_size=6",
)  # fmt: skip


def test_evaluations_that_are_left_out_change_nothing_else(tmp_path):
    every, third = tmp_path / "every", tmp_path / "third"
    full = train_here(every, *FOUR)
    report = train_here(third, *FOUR, "train.eval_epochs=3")
    records, expected = metrics(third), metrics(every)
    assert [sorted(record) for record in records] == [
        sorted({"kind", "epoch", "update", "window", "train", *measured})
        for measured in ((), (), ("val", "ema"), ("val", "ema"))
    ]
    for record, other in zip(records, expected, strict=True):
        assert record.items() <= other.items()
    assert (report["val"], report["ema"]) == (full["val"], full["ema"])
    best = max((r for r in expected if r["epoch"] in (3, 4)), key=lambda record: record["val"]["top1"])
    assert (report["best"]["value"], report["best"]["epoch"]) == (best["val"]["top1"], best["epoch"])
    assert {"best", "window_00000020"} <= set(checkpoints(third))
    assert "window_00000005" not in checkpoints(third)  # a new best of every epoch's evaluation


def test_a_stop_in_an_epoch_without_evaluation_changes_no_bit(tmp_path, monkeypatch):
    rare = (*FOUR, "train.eval_epochs=3")
    train_here(tmp_path / "whole", *rare)
    for at in (10, 12):  # the end of an epoch that is not evaluated, and the middle of one that is
        folder = tmp_path / str(at)
        with monkeypatch.context() as patch:
            kill_at(patch, at)
            with pytest.raises(PreemptedError):
                train_here(folder, *rare)
        train_here(folder, *rare, resume="auto")
        assert resumed_at(folder) == [at]
        assert_same_run(tmp_path / "whole", folder)


def test_a_run_that_is_cut_off_is_evaluated_there(tmp_path):
    report = train_here(tmp_path, *FOUR, "train.eval_epochs=3", "train.max_updates=7")
    assert report["val"]["num_images"] == 360
    assert [record["update"] for record in metrics(tmp_path) if "val" in record] == [7]
    more = train_here(tmp_path, *FOUR, "train.eval_epochs=2", resume="auto")  # which may differ in a resume
    assert [record["epoch"] for record in metrics(tmp_path) if "val" in record] == [2, 4]
    assert more["windows"] == 20


def test_runs_from_folder_packed_file_and_cache_are_the_same_and_resume_each_other(tmp_path):
    root = draw_folder(tmp_path / "pictures")
    pack(DataConfig(path=str(root)), tmp_path / "pictures.safetensors")
    places = {
        "folder": (f"data.path={root}",),
        "packed": (f"data.path={tmp_path / 'pictures.safetensors'}",),
        "cache": (f"data.path={root}", "data.cache=true"),
    }
    for name, place in places.items():
        train_here(tmp_path / name, *PICTURES, *place)
        assert_same_run(tmp_path / "folder", tmp_path / name)
    train_here(tmp_path / "moved", *PICTURES, *places["folder"], "train.max_updates=3")
    train_here(tmp_path / "moved", *PICTURES, *places["packed"], resume="auto")
    assert resumed_at(tmp_path / "moved") == [3]
    facts = json.loads((tmp_path / "moved/run.json").read_text())
    assert facts["loading"].startswith("the images of pictures are held on cpu (0 MiB), mapped from ")
    last = [record for record in metrics(tmp_path / "moved", "update") if record["update"] == 4]
    assert [r["loss"] for r in last] == [r["loss"] for r in metrics(tmp_path / "folder", "update")[3:4]]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("runtime.compile=true", "runtime.compile_mode=fast"), "runtime.compile_mode: Invalid value 'fast'"),
        (("runtime.compile_mode=reduce-overhead",), "compile_mode=reduce-overhead needs runtime.compile=true"),
        (("train.eval_epochs=0",), "train.eval_epochs must be positive, got 0"),
    ],
)
def test_what_cannot_be_is_refused(overrides, message):
    with pytest.raises(UsageError, match=message):
        load_config(overrides=overrides)


@pytest.mark.parametrize("mode", [None, "default", "reduce-overhead"])
def test_the_mode_reaches_the_compiler(mode, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda model, **kwargs: (seen.append(kwargs), model)[1])
    parts = parts_of("runtime.compile=true", *([f"runtime.compile_mode={mode}"] if mode else []))
    assert seen == [{"mode": mode}]
    assert parts.trainer.replays_graphs == (mode == "reduce-overhead")


class Replayed(torch.nn.Module):
    """A network whose output and gradients lie in memory that is overwritten when the next step begins."""

    def __init__(self, model, monkeypatch):
        super().__init__()
        self.model = model
        self.memory = {}
        for name, parameter in model.named_parameters():
            parameter.register_hook(lambda gradient, name=name: self.keep(name, gradient))
        monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", self.overwrite)

    def keep(self, name, tensor):
        memory = self.memory.setdefault(name, torch.empty_like(tensor))
        memory.copy_(tensor)
        return memory.detach()  # a tensor of its own on this memory, which autograd takes over as it is

    def overwrite(self):
        for memory in self.memory.values():
            memory.fill_(torch.nan)

    def forward(self, x):
        return self.model(x)


@pytest.mark.parametrize("micro", [64, 16], ids=["whole", "accumulated"])
@pytest.mark.parametrize("name", ["sgd", "adamw", "lion"])
def test_nothing_is_read_that_a_replayed_graph_has_overwritten(name, micro, monkeypatch):
    overrides = (*NANO, f"optim.name={name}", "train.global_batch_size=64", f"train.micro_batch_size={micro}")
    plain, replayed = parts_of(*overrides).trainer, parts_of(*overrides).trainer
    replayed.state.model = Replayed(replayed.state.bare_model, monkeypatch)
    replayed.replays_graphs = True
    for _, _, _ in zip(plain.windows(), replayed.windows(), range(3), strict=False):
        pass
    assert replayed.state.model.memory
    for ours, theirs in zip(replayed.drain(), plain.drain(), strict=True):
        assert (ours.loss, ours.grad_norm) == (theirs.loss, theirs.grad_norm)
    weights = plain.state.bare_model.state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in replayed.state.bare_model.state_dict().items())
