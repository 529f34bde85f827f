"""What can be seen of a run: a bar on a terminal, plain lines elsewhere, the share of the peak where it is known."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image
from runs import ROOT, metrics, train_here

from affnorm_zoo.errors import UsageError
from affnorm_zoo.runs.files import read_json
from affnorm_zoo.training import cost, engine


def read_to_the_end(terminal):
    seen = b""
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # its other end is closed
            return seen
        seen += chunk


def test_a_terminal_gets_a_bar(tmp_path, monkeypatch):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 160, 0, 0))
    with ThreadPoolExecutor(1) as pool, os.fdopen(theirs, "w") as terminal:
        seen = pool.submit(read_to_the_end, ours)
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stderr", terminal)
        train_here(tmp_path, "runtime.log_updates=1")
        monkeypatch.undo()
        terminal.close()
        text = seen.result().decode()
    os.close(ours)
    assert "10/10" in text
    for word in ("loss ", "grad ", "lr ", "img/s", "wait ", "epoch   2/2", "top-1"):
        assert word in text


def test_elsewhere_lines(tmp_path, capsys, monkeypatch):
    from affnorm_zoo.training import run_log

    monkeypatch.setattr(run_log, "_SECONDS_A_LINE", 0)
    train_here(tmp_path)
    loading, *lines = capsys.readouterr().out.splitlines()
    assert loading.startswith("the images of digits are held on cpu")
    assert [line.split()[0] for line in lines] == ["update", "update", "epoch", "update", "update", "epoch"]
    assert all("img/s" in line for line in lines if line.startswith("update"))


def test_curves_are_drawn_or_missed_aloud(tmp_path, monkeypatch, caplog):
    train_here(tmp_path / "with", "model.ema_decay=0.9", curves=True)
    assert Image.open(tmp_path / "with/curves.png").size[0] > 500
    monkeypatch.setattr(engine, "plot_curves", lambda *_: False)
    train_here(tmp_path / "without", "train.max_updates=1", curves=True)
    assert "curves.png needs matplotlib" in caplog.text


def test_the_peak_is_looked_up_by_device_and_precision(monkeypatch):
    cuda = torch.device("cuda")
    for name, half, single in (("NVIDIA H200", 989e12, 67e12), ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert (cost.peak_flops(cuda, "bf16"), cost.peak_flops(cuda, "no")) == (half, single)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GPU of next year")
    assert cost.peak_flops(cuda, "bf16") is None
    assert cost.peak_flops(torch.device("cpu"), "no") is None


def test_the_share_of_a_known_peak_is_logged(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "peak_flops", lambda *_: 1e12)
    train_here(tmp_path, "train.max_updates=4")
    flops = read_json(tmp_path / "run.json")["forward_flops"]
    for record in metrics(tmp_path, "update"):
        assert record["mfu"] == pytest.approx(3 * flops * record["images_per_second"] / 1e12, abs=1e-4)


def test_the_environment_is_written_down(tmp_path):
    train_here(tmp_path, "train.max_updates=1")
    record = read_json(tmp_path / "run.json")
    assert {"device", "cpu_count", "python", "torch", "timm", "affnorm-zoo"} <= record["environment"].keys()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT)
    if commit.returncode == 0:
        assert record["git_commit"].removesuffix("-dirty") == commit.stdout.strip()
    assert record["facts"]["num_train"] == 1437


def test_the_fingerprint_is_that_of_the_experiment(tmp_path):
    def fingerprint(name, *overrides):
        train_here(tmp_path / name, "train.max_updates=1", *overrides)
        return read_json(tmp_path / name / "run.json")["fingerprint"]

    one = fingerprint("one")
    assert fingerprint("same", "runtime.log_updates=9", "train.micro_batch_size=64") == one
    assert fingerprint("other", "train.seed=1") != one


def test_synchronised_statistics_need_gpus():
    from affnorm_zoo.config import RuntimeConfig
    from affnorm_zoo.training.builders import synchronize_batch_norm

    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    config, cpu = RuntimeConfig(sync_bn=True), torch.device("cpu")
    assert synchronize_batch_norm(config, model, cpu, world_size=1) is model
    with pytest.raises(UsageError, match=r"runtime.sync_bn needs GPUs"):
        synchronize_batch_norm(config, model, cpu, world_size=2)
    converted = synchronize_batch_norm(config, model, torch.device("cuda"), world_size=2)
    assert isinstance(converted[0], torch.nn.SyncBatchNorm)
