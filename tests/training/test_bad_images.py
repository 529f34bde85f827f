"""Training images that cannot be decoded count once: over epochs, workers, processes and resumes."""

import logging

import pytest
from forks import run_forked
from pictures import draw_folder
from runs import TINY, assert_same_run, kill_at, state, train_here

from affnorm_zoo.errors import UsageError
from affnorm_zoo.training import PreemptedError

BAD = ("blue/3.png", "green/0.png", "red/7.png")


@pytest.fixture
def arguments(tmp_path):
    root = draw_folder(tmp_path / "pictures")
    for name in BAD:
        (root / "train" / name).write_bytes(b"no picture")
    return (f"data.path={root}", "data.image_size=16", "data.crop=none", "data.in_memory=never", "train.epochs=3",
            "train.global_batch_size=12", "train.micro_batch_size=6")  # fmt: skip


def written(run):
    return sorted(line.split("\t")[1] for line in (run / "bad_images.txt").read_text().splitlines())


@pytest.mark.parametrize("more", [(), ("data.workers=2",), ("data.in_memory=always",)], ids=str)
def test_each_counts_once_over_all_epochs(more, arguments, tmp_path, caplog):
    allowed = (*arguments, *more, "data.max_bad_images=3")
    with caplog.at_level(logging.WARNING):
        report = train_here(tmp_path / "run", *allowed)
    assert written(tmp_path / "run") == sorted(BAD)
    assert report["num_bad_images"] == 3
    if "workers" not in str(more):  # whose log is not seen here
        replaced = [record for record in caplog.records if "takes its place" in record.message]
        assert len(replaced) == 3
    with pytest.raises(UsageError, match=r"cannot be decoded .* more than 2 replacements by data.max_bad_images"):
        train_here(tmp_path / "strict", *arguments, *more, "data.max_bad_images=2")


def test_all_processes_count_together(arguments, tmp_path):
    command = ("scripts/train.py", *TINY, *arguments)
    run_forked(*command, "data.max_bad_images=3", "--output", tmp_path / "run", processes=2)
    assert written(tmp_path / "run") == sorted(BAD)
    result = run_forked(*command, "data.max_bad_images=2", "--output", tmp_path / "two", processes=2, ok=False)
    assert result.returncode == 2
    errors = [line for line in result.stderr.splitlines() if "takes its place" not in line]
    assert len(errors) == 1, result.stderr
    assert "more than 2 replacements" in errors[0]
    assert "more than 2 replacements" in state(tmp_path / "two")["message"]
    assert len(written(tmp_path / "two")) == 3


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_resumed_run_counts_on(elsewhere, arguments, tmp_path, monkeypatch):
    train_here(tmp_path / "whole", *arguments, "data.max_bad_images=3")
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(PreemptedError):
            train_here(tmp_path / "run", *arguments, "data.max_bad_images=3")
    output = tmp_path / ("other" if elsewhere else "run")
    resume = str(tmp_path / "run/checkpoints/window_00000004") if elsewhere else "auto"
    train_here(output, *arguments, "data.max_bad_images=3", resume=resume)
    assert written(output) == sorted(BAD)
    if not elsewhere:
        assert_same_run(tmp_path / "whole", output)


def test_a_set_of_nothing_but_bad_images_ends(arguments, tmp_path):
    for file in (tmp_path / "pictures/train").rglob("*.png"):
        file.write_bytes(b"no picture")
    with pytest.raises(UsageError, match="none of the 24 images can be decoded"):
        train_here(tmp_path / "run", *arguments, "data.max_bad_images=99")
