"""What one process alone finds wrong is told once, in a line, and ends all of them with the code of a wrong use."""

import json

import pytest
from forks import run_forked
from pictures import draw_folder
from runs import TINY, state

from affnorm_zoo.models import WEIGHTS_FOLDER

ONE_EPOCH = (*TINY, "train.epochs=1", "optim.warmup_epochs=0", "data.in_memory=never")
HELD = WEIGHTS_FOLDER / "resnet20_cifar_patchnorm.c10_e10"


@pytest.mark.parametrize(
    ("fault", "rank", "message"),
    [
        ("data", 0, "this process has no such file"),
        ("data", 1, "this process has no such file"),
        ("training worker", 1, "the loader failed at update 1"),
        ("validation worker", 1, "the loader failed: DataLoader worker"),
        ("export", 0, "this process has no such file"),
    ],
)
def test_an_error_of_one_process_is_told_once(fault, rank, message, tmp_path):
    workers = ("data.workers=1",) if "worker" in fault else ()
    result = run_forked(
        "tests/support/fails_on_a_rank.py", *ONE_EPOCH, *workers, "--output", tmp_path / "run",
        processes=2, ok=False, FAULT=fault, FAULTY_RANK=str(rank),
    )  # fmt: skip
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"error: {message}")
    if "worker" in fault:
        assert message in state(tmp_path / "run")["message"]


def test_an_error_of_all_processes_is_told_once(tmp_path):
    for wrong in ("optim.rate=1", "data.path=/nowhere"):
        result = run_forked("scripts/train.py", wrong, *ONE_EPOCH, processes=2, ok=False)
        assert result.returncode == 2
        (line,) = result.stderr.strip().splitlines()
        assert line.startswith("error: ")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_model_that_one_process_cannot_measure_is_passed_over_by_all(workers, tmp_path):
    names = json.loads((HELD / "config.json").read_text())["label_names"]
    root = draw_folder(tmp_path / "pictures", classes=names, per_class=16)
    for bad in (3, 4):  # in the shares of different processes, and not among the few that are tried first
        file = root / "val/airplane" / f"{bad}.png"
        content = file.read_bytes()
        file.write_bytes(b"no picture")
        result = run_forked(
            "scripts/evaluate.py", HELD, "resnet20_cifar_patchnorm_ws", f"data.path={root}", f"data.workers={workers}",
            "runtime.device=cpu", processes=2, ok=False,
        )  # fmt: skip
        file.write_bytes(content)
        assert result.returncode == 2
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 2
        assert all("cannot be decoded" in line and "data.max_bad" not in line for line in errors)
        assert "Traceback" not in result.stderr
        assert not result.stdout
