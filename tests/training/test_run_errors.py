"""What ends a run with an error: full disks, occupied folders, exceptions on one rank."""

import resource
import signal
from pathlib import Path

import pytest
from forks import run_forked, start_forked
from long_runs import LONG, TRAIN, wait_until_training
from runs import (
    checkpoints,
    state,
    train_here,
)

from affnorm_zoo.errors import UsageError


def test_a_full_disk_is_an_error_that_spares_what_is_there(tmp_path, monkeypatch):
    train_here(tmp_path, "train.max_updates=2")
    before = checkpoints(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))  # the weights alone take twice as much
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
    process = start_forked(*LONG, "--output", tmp_path)
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
    result = run_forked(script, *TRAIN[1:], "--output", tmp_path / "run", processes=2, ok=False)
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
    result = run_forked(script, *TRAIN[1:], "--output", tmp_path / "run", processes=2, ok=False)
    assert "ZeroDivisionError: rank 1 has had enough" in result.stderr
    assert state(tmp_path / "run")["state"] == "failed"


def test_a_read_only_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="already in use"):
        train_here(tmp_path / "file")
    with pytest.raises(UsageError, match="cannot be written to"):
        train_here(Path("/proc/run"))


def test_the_scripts_answer_by_exit_codes(tmp_path):
    process = start_forked(*LONG, "--output", tmp_path / "run", folder=tmp_path)
    wait_until_training(tmp_path / "run", process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 128 + signal.SIGINT
    output = (tmp_path / "stderr").read_text()
    assert "resume with --resume auto" in output
    assert "Traceback" not in output
