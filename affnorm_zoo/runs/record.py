"""Read what a run has written about itself. A field that is missing or unknown is an error, never a default."""

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from affnorm_zoo.config import RunConfig, load_config, read_yaml
from affnorm_zoo.errors import UsageError
from affnorm_zoo.runs.files import read_json
from affnorm_zoo.runs.layout import CONFIG_FILE, RUN_FILE

FORMAT = 1  # of run.json and of checkpoints; raised with every change that an earlier reader would misread


class FormatError(UsageError):
    """A run or checkpoint has a format that this version does not read."""


def check_format(found: int | None, path: Path) -> None:
    """Compare the format version that ``path`` states with the one that is read here.

    Raises:
        FormatError: they differ, or ``path`` states none.
    """
    if found != FORMAT:
        stated = "no format version" if found is None else f"format version {found}"
        raise FormatError(
            f"{path} has {stated}, and this affnorm_zoo reads format version {FORMAT}: resume it with the affnorm_zoo "
            "that wrote it, or start a new run"
        )


def check_fields(found: Collection[str], wanted: Collection[str], path: Path) -> None:
    """Compare the names of the fields in ``path`` with those that are read here.

    Raises:
        FormatError: one is missing or unknown.
    """
    faults = {"lacks": sorted(set(wanted) - set(found)), "has the unknown": sorted(set(found) - set(wanted))}
    if any(faults.values()):
        told = " and ".join(f"{fault} {', '.join(names)}" for fault, names in faults.items() if names)
        raise FormatError(f"{path} {told}: read it with the affnorm_zoo that wrote it, or start a new run")


def read_record(run: Path) -> dict[str, Any]:
    """A run's run.json.

    Raises:
        UsageError: there is none, or it has another format.
    """
    if not (run / RUN_FILE).is_file():
        raise UsageError(f"{run} is not a run folder: it has no {RUN_FILE}")
    record = read_json(run / RUN_FILE)
    check_format(record.get("format"), run / RUN_FILE)
    return record


def read_config(run: Path) -> RunConfig:
    """The config that a run has written to its folder.

    Raises:
        UsageError: there is none, or it lacks a setting or has an unknown one.
    """
    path = run / CONFIG_FILE
    config, written = load_config([path]), read_yaml(path, RunConfig)
    wanted = [f"{section}.{name}" for section, values in asdict(config).items() for name in values]
    check_fields([f"{section}.{name}" for section, values in written.items() for name in values], wanted, path)
    return config
