"""Runs that last long enough to be disturbed."""

from pathlib import Path

from runs import EVERYTHING, TINY, wait_for

TRAIN = ("scripts/train.py", *TINY, *EVERYTHING)
LONG = ("scripts/train.py", *TINY, "train.epochs=400")


def updates_of(folder):
    path = Path(folder) / "metrics.jsonl"
    return path.read_text().count('"kind": "update"') if path.exists() else 0


def wait_until_training(folder, process):
    def is_training():
        assert process.poll() is None, process.stdout and process.stdout.read()
        return updates_of(folder) >= 4

    wait_for(is_training)
