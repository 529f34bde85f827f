"""What may happen to a run: kills, full disks, signals to whomever they reach, two runs at once."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from forks import run_forked, start_forked
from long_runs import LONG, TRAIN, updates_of, wait_until_training
from runs import (
    assert_same_run,
    checkpoints,
    metrics,
    start,
    state,
    wait_for,
)
from safetensors import safe_open

from affnorm_zoo.runs import checkpoint


def children(pid):
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def worker_pids(folder):
    """Processes whose command line names the run folder and the script, launchers aside."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text(errors="replace").split("\0")
        except OSError:
            continue
        if str(folder) in words and "accelerate.commands.launch" not in words:
            found.append(int(path.parent.name))
    return found


def test_the_launchers_sigterm_reaches_a_single_process(tmp_path):
    folder = tmp_path / "run"
    process = start(*LONG, "--output", folder, launcher=True)
    wait_until_training(folder, process)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)
    wait_for(lambda: state(folder)["state"] == "preempted", seconds=30)
    wait_for(lambda: not worker_pids(folder), seconds=30)
    assert checkpoint.find_latest(folder / "checkpoints") is not None


@pytest.mark.slow
@pytest.mark.parametrize("target", ["launcher", "group", "one rank"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_two_processes_saves_once_and_leaves_no_orphan(target, signum, tmp_path):
    folder = tmp_path / "run"
    arguments = (
        *TRAIN,
        "train.epochs=6",
        "data.in_memory=never",
        "data.workers=1",
        "--output",
        folder,
        "--resume",
        "auto",
    )
    process = start(*arguments, processes=2)
    wait_until_training(folder, process)
    begin = time.monotonic()
    if target == "launcher":
        process.send_signal(signum)
    elif target == "group":
        os.killpg(process.pid, signum)
    else:
        os.kill(children(process.pid)[0], signum)
    process.wait(timeout=30)
    wait_for(lambda: not worker_pids(folder), seconds=30)
    assert time.monotonic() - begin < 30
    assert state(folder)["state"] == "preempted"
    run_forked(*arguments, processes=2)
    run_forked(*TRAIN, "train.epochs=6", "data.in_memory=never", "--output", tmp_path / "whole", processes=2)
    assert_same_run(tmp_path / "whole", folder)


def test_a_second_signal_ends_at_once(tmp_path):
    process = start_forked("-c", (
        "import os, signal, time\n"
        "from affnorm_zoo.training.interrupt import Interrupt\n"
        "with Interrupt():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    ), folder=tmp_path)  # fmt: skip
    assert process.wait(timeout=60) == -signal.SIGTERM
    assert "still here" in (tmp_path / "stdout").read_text()


def kill_while_saving(folder, delay):
    """Start or go on with a run that saves after every update, and kill it ``delay`` seconds into training."""
    before = updates_of(folder)
    arguments = (*LONG, "model.ema_decay=0.9", "checkpoint.every_updates=1", "--output", folder, "--resume", "auto")
    process = start_forked(*arguments)
    wait_for(lambda: process.poll() is not None or updates_of(folder) not in (0, before))
    time.sleep(delay)
    process.kill()
    process.wait()


def assert_whole_and_unmixed(folder):
    """The newest checkpoint that passes verification holds the state of one and the same update."""
    found = checkpoint.find_latest(folder / "checkpoints")
    assert found is not None
    progress = json.loads((found / "state.json").read_text())["progress"]
    with safe_open(found / "optimizer.safetensors", "pt") as optimizer:
        steps = {float(optimizer.get_tensor(key)) for key in optimizer.keys() if key.endswith(".step")}  # noqa: SIM118
    assert steps == {progress["updates"]}
    assert found.name == f"window_{progress['windows']:08d}"
    return progress["windows"]


@pytest.mark.slow
def test_twenty_kills_while_saving_leave_whole_checkpoints(tmp_path):
    folder, last = tmp_path / "run", 1
    run_forked(*LONG, "model.ema_decay=0.9", "train.max_updates=1", "--output", folder)
    for number in range(20):
        kill_while_saving(folder, delay=0.037 * number)
        update = assert_whole_and_unmixed(folder)
        assert update >= last  # never behind what an earlier start had saved
        # at most one interval is lost: metrics are written before the save that follows them
        assert updates_of(folder) - update <= 2
        last = update


def test_a_kill_while_saving_leaves_a_whole_checkpoint(tmp_path):
    kill_while_saving(tmp_path, delay=0.3)
    update = assert_whole_and_unmixed(tmp_path)
    run_forked(
        *LONG, "model.ema_decay=0.9", f"train.max_updates={update + 2}", "--output", tmp_path, "--resume", "auto"
    )
    assert not [name for name in checkpoints(tmp_path) if name.endswith(".tmp")]
    assert [r["update"] for r in metrics(tmp_path, "update")] == list(range(1, update + 3))


@pytest.mark.slow
def test_a_rank_killed_while_saving_leaves_the_checkpoint_before(tmp_path):
    process = start(*LONG, "checkpoint.every_updates=1", "--output", tmp_path, processes=2)
    wait_until_training(tmp_path, process)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    assert process.wait(timeout=60) != 0
    wait_for(lambda: not worker_pids(tmp_path), seconds=30)
    update = checkpoint.find_latest(tmp_path / "checkpoints")
    assert update is not None
    number = int(update.name.split("_")[1])
    run_forked(*LONG, f"train.max_updates={number + 1}", "--output", tmp_path, "--resume", "auto", processes=2)
    assert not [name for name in checkpoints(tmp_path) if name.endswith(".tmp")]
