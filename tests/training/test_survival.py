"""What may happen to a run: kills, full disks, signals to whomever they reach, two runs at once."""

import json
import os
import resource
import signal
import time
from pathlib import Path

import pytest
from forks import run_forked
from runs import (
    EVERYTHING,
    TINY,
    assert_same_run,
    checkpoints,
    metrics,
    resumed_at,
    run,
    start,
    state,
    train_here,
    wait_for,
)
from safetensors import safe_open

from affnorm_zoo.errors import UsageError
from affnorm_zoo.runs import checkpoint

TRAIN = ("scripts/train.py", *TINY, *EVERYTHING)
LONG = ("scripts/train.py", *TINY, "train.epochs=400")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an interrupted run of six epochs must equal in the end."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_forked(*TRAIN, "train.epochs=6", "--output", folder)
    return folder


def updates_of(folder):
    path = Path(folder) / "metrics.jsonl"
    return path.read_text().count('"kind": "update"') if path.exists() else 0


def wait_until_training(folder, process):
    def is_training():
        assert process.poll() is None, process.stdout.read()
        return updates_of(folder) >= 4

    wait_for(is_training)


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


def test_the_launchers_sigterm_reaches_a_single_process(tmp_path, whole):
    folder = tmp_path / "run"
    arguments = (*TRAIN, "train.epochs=6", "--output", folder, "--resume", "auto")
    process = start(*arguments, launcher=True)
    wait_until_training(folder, process)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)
    wait_for(lambda: state(folder)["state"] == "preempted", seconds=30)
    wait_for(lambda: not worker_pids(folder), seconds=30)
    run_forked(*arguments)
    assert state(folder)["state"] == "completed"
    assert resumed_at(folder)
    assert_same_run(whole, folder)


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
    run(*arguments, processes=2)
    run(*TRAIN, "train.epochs=6", "data.in_memory=never", "--output", tmp_path / "whole", processes=2)
    assert_same_run(tmp_path / "whole", folder)


def test_a_second_signal_ends_at_once(tmp_path):
    process = start("-c", (
        "import os, signal, time\n"
        "from affnorm_zoo.training.interrupt import Interrupt\n"
        "with Interrupt():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    ))  # fmt: skip
    assert process.wait(timeout=60) == -signal.SIGTERM
    assert "still here" in process.stdout.read()


def kill_while_saving(folder, delay):
    """Start or go on with a run that saves after every update, and kill it ``delay`` seconds into training."""
    before = updates_of(folder)
    process = start(*LONG, "model.ema_decay=0.9", "checkpoint.every_updates=1", "--output", folder, "--resume", "auto")
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
    run(*LONG, "model.ema_decay=0.9", "train.max_updates=1", "--output", folder)
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
    run(*LONG, "model.ema_decay=0.9", f"train.max_updates={update + 2}", "--output", tmp_path, "--resume", "auto")
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
    run(*LONG, f"train.max_updates={number + 1}", "--output", tmp_path, "--resume", "auto", processes=2)
    assert not [name for name in checkpoints(tmp_path) if name.endswith(".tmp")]


def test_a_full_disk_is_an_error_that_spares_what_is_there(tmp_path, monkeypatch):
    train_here(tmp_path, "train.max_updates=2")
    before = checkpoints(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))  # the weights alone take a million bytes
        with pytest.raises(UsageError, match=r"could not be written .*the earlier ones are untouched"):
            train_here(tmp_path, resume="auto")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert checkpoints(tmp_path) == before
    assert state(tmp_path)["state"] == "failed"
    assert "could not be written" in state(tmp_path)["message"]
    train_here(tmp_path, resume="auto")
    assert state(tmp_path)["state"] == "completed"


def test_two_runs_cannot_share_a_folder_and_a_dead_ones_lock_is_taken(tmp_path):
    process = start(*LONG, "--output", tmp_path)
    wait_until_training(tmp_path, process)
    with pytest.raises(UsageError, match=f"another run writes to .*process {process.pid} on"):
        train_here(tmp_path, "train.epochs=400", resume="auto")
    assert state(tmp_path)["state"] == "running"
    process.kill()
    process.wait()
    train_here(tmp_path, "train.epochs=400", "train.max_updates=1", resume="auto")
    assert state(tmp_path)["state"] == "completed"


@pytest.mark.slow
def test_a_gradient_that_is_no_number_on_one_rank_ends_all(tmp_path):
    script = tmp_path / "poisons.py"
    script.write_text(
        "import os\n"
        "from affnorm_zoo.training.loop import Trainer\n"
        "original = Trainer._backward\n"
        "def backward(self, images, *rest, **options):\n"
        "    if os.environ['RANK'] == '1' and self.state.progress.windows == 6:\n"
        "        images = images.float() * float('inf')\n"
        "    return original(self, images, *rest, **options)\n"
        "Trainer._backward = backward\n"
        "from affnorm_zoo.cli.train import train\n"
        "train()\n"
    )
    result = run(script, *TRAIN[1:], "--output", tmp_path / "run", processes=2, ok=False)
    assert "training diverged: the gradient norm is nan at update 7" in result.stderr
    assert checkpoints(tmp_path / "run") == ["best", "window_00000005"]
    assert state(tmp_path / "run")["state"] == "failed"


@pytest.mark.slow
def test_an_exception_on_one_rank_ends_all(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text(
        "import os\n"
        "from affnorm_zoo.training.loop import Trainer\n"
        "original = Trainer._step\n"
        "def step(self, lr):\n"
        "    if os.environ['RANK'] == '1' and self.state.progress.windows == 3:\n"
        "        raise ZeroDivisionError('rank 1 has had enough')\n"
        "    return original(self, lr)\n"
        "Trainer._step = step\n"
        "from affnorm_zoo.cli.train import train\n"
        "train()\n"
    )
    result = run(script, *TRAIN[1:], "--output", tmp_path / "run", processes=2, ok=False)
    assert "ZeroDivisionError: rank 1 has had enough" in result.stderr
    assert state(tmp_path / "run")["state"] == "failed"


def test_a_read_only_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="already in use"):
        train_here(tmp_path / "file")
    with pytest.raises(UsageError, match="cannot be written to"):
        train_here(Path("/proc/run"))


def test_the_scripts_answer_by_exit_codes(tmp_path):
    process = start(*LONG, "--output", tmp_path)
    wait_until_training(tmp_path, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 128 + signal.SIGINT
    output = process.stdout.read()
    assert "resume with --resume auto" in output
    assert "Traceback" not in output
