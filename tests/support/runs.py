"""Runs of the training suite: in this process, or as a user starts them."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch
from accelerate.state import AcceleratorState
from click.testing import CliRunner
from safetensors.torch import load_file

from affnorm_zoo.config import load_config
from affnorm_zoo.errors import UsageError
from affnorm_zoo.training import engine, train

ROOT = Path(__file__).parents[2]
SHALLOW = "model.kwargs.layers=[1,1,1]"
# five updates an epoch, about a second
TINY = (
    "model.name=resnet20_cifar_patchnorm", SHALLOW, "train.epochs=2", "train.global_batch_size=256",
    "train.micro_batch_size=128",
    "optim.lr=1e-3", "runtime.device=cpu", "runtime.log_updates=4",
)  # fmt: skip
SMALL_VIT = ("model.name=vit_nano_patch4_32_affinelike", "model.kwargs.img_size=8", "model.kwargs.depth=2")
EVERYTHING = (
    "data.mixup=0.2", "data.cutmix=1.0", "data.erase=0.5", "data.hflip=0.5", "model.kwargs.drop_path_rate=0.2",
    "model.kwargs.drop_rate=0.1", "model.ema_decay=0.9", "optim.layer_decay=0.9", "optim.clip_grad=1.0",
)  # fmt: skip


def tiny(*overrides):
    """``TINY`` and these, at full depth where they name weights or an architecture that has other arguments."""
    deep = ("model.name=vit", "model.name=resnet56", "model.pretrained", "model.weights")
    is_deep = any(override.startswith(deep) for override in overrides)
    return [override for override in TINY if not (is_deep and override == SHALLOW)] + list(overrides)


def train_here(output, *overrides, files=(), curves=False, **kwargs):
    """Train in this process, which forgets the precision of the run before; curves take as long as the training."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with nullcontext() if curves else mock.patch.object(engine, "plot_curves"):
        return train(load_config(files, tiny(*overrides)), Path(output), **kwargs)


def invoke(command, *arguments):
    """Run a command of the package in this process; what it does not report itself is raised."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


def environment(**extra):
    return {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", **extra}


def command(*arguments, processes=0, launcher=False):
    """The command line of a script, through accelerate if asked for."""
    launch = []
    if processes:
        launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes),
                  "--main_process_port", "0"]  # fmt: skip
    elif launcher:
        launch = ["-m", "accelerate.commands.launch", "--num_processes", "1"]
    return [sys.executable, *launch, *map(str, arguments)]


def run(*arguments, processes=0, ok=True, **extra):
    """Run a script to its end."""
    result = subprocess.run(
        command(*arguments, processes=processes),
        cwd=ROOT, env=environment(**extra), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (result.returncode == 0) == ok, result.stdout + result.stderr
    return result


def start(*arguments, processes=0, launcher=False, **extra):
    """Begin a script in a process group of its own."""
    return subprocess.Popen(
        command(*arguments, processes=processes, launcher=launcher), cwd=ROOT, env=environment(**extra),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for(condition, seconds=90):
    """Wait until the condition holds, and return what it gave."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise TimeoutError(f"not within {seconds} s")


def metrics(folder, kind="epoch"):
    records = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == kind]


def state(folder):
    return json.loads((Path(folder) / "run_state.json").read_text())


def checkpoints(folder):
    return sorted(path.name for path in (Path(folder) / "checkpoints").iterdir())


def resumed_at(folder):
    """The windows that a run was resumed after; one that began anew would end with the same bits."""
    resumes = json.loads((Path(folder) / "run.json").read_text())["resumes"]
    return [int(Path(entry["checkpoint"]).name.removeprefix("window_")) for entry in resumes]


def timeless(records):
    """Records without what the clock wrote."""
    return [{k: v for k, v in record.items() if k not in ("images_per_second", "data_wait")} for record in records]


def assert_same_run(one, two):
    """Weights, averages, every update's loss, norm and rate, and every epoch's metrics are equal to the bit."""
    for name in ("model.safetensors", "ema.safetensors"):
        assert (Path(one) / name).exists() == (Path(two) / name).exists()
        if (Path(one) / name).exists():
            a, b = load_file(Path(one) / name), load_file(Path(two) / name)
            assert a.keys() == b.keys()
            assert all(torch.equal(a[key], b[key]) for key in a), name
    for kind in ("update", "epoch"):
        assert timeless(metrics(one, kind)) == timeless(metrics(two, kind))


def kill_at(monkeypatch, update, signum=signal.SIGTERM):
    """Let this process receive a signal right after an update."""
    from affnorm_zoo.training.run_log import RunLog

    counted = []

    def advance(log):
        counted.append(1)
        if len(counted) == update:
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(RunLog, "advance", advance)


def refusal(action):
    """What is said where the action is refused; empty where it is not."""
    try:
        action()
    except UsageError as error:
        return str(error).strip() or "\n"
    return ""
