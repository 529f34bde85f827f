"""The same budget for every arm: tune over one grid on images held out, then run seeds and score them once."""

import itertools
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from affnorm_zoo.config import RunConfig, load_config, read_yaml, to_schema
from affnorm_zoo.config.require import require
from affnorm_zoo.training.loop import NonFiniteError
from affnorm_zoo.training.run import train
from affnorm_zoo.training.run_folder import read_json, write_json

TUNING_SEED = 0
FINAL_SEED = 1  # of the first of the scored runs


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A comparison.

    Args:
        arms: name -> config files and overrides that make it what it is.
        baseline: the arm that others are compared with.
        shared: overrides of all arms.
        grid: dotted key -> values; every arm is tuned over all combinations, by one run each.
        tuning: overrides of the tuning runs alone, such as fewer epochs.
        hold_out: training images that tuning is scored on.
        seeds: runs of each arm at its best combination, on the whole training set, scored on the validation split.
    """

    arms: dict[str, list[str]]
    baseline: str
    shared: tuple[str, ...] = ()
    grid: dict[str, list[Any]] = field(default_factory=dict)
    tuning: tuple[str, ...] = ()
    hold_out: int = 5000
    seeds: int = 3

    def __post_init__(self) -> None:
        require(len(self.arms) > 0, "arms must name at least one")
        require(self.baseline in self.arms, f"baseline must be one of {', '.join(self.arms)}, got {self.baseline!r}")
        require(all(self.grid.values()), "every key of grid needs a value")
        require(self.hold_out > 0, f"hold_out must be positive, got {self.hold_out}")
        require(self.seeds > 0, f"seeds must be positive, got {self.seeds}")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep: its arm, its point of the grid and its seed; ``is_final`` where it is scored on the test."""

    arm: str
    point: Mapping[str, Any]
    seed: int
    is_final: bool

    @property
    def name(self) -> str:
        """A file name of the trial's own."""
        point = "_".join(f"{key.rpartition('.')[2]}={value}" for key, value in self.point.items())
        return "_".join(filter(None, [self.arm, point, f"s{self.seed}", "final" if self.is_final else "tune"]))


def load_sweep(path: Path) -> SweepConfig:
    """Read a sweep's YAML.

    Raises:
        UsageError: it is missing or not YAML, or a key or value does not fit.
    """
    return to_schema(SweepConfig, path, read_yaml(path))


def run_sweep(sweep: SweepConfig, folder: Path, overrides: tuple[str, ...] = ()) -> None:
    """Make the runs that are missing, one after another; a run that was cut off goes on from its checkpoint.

    ``folder/results/NAME.json`` is one run's result. Of a final run the run folder stays, in ``folder/runs/NAME``.

    Raises:
        UsageError: a config does not fit; nothing has run then.
        PreemptedError: a signal asked for a stop; the run under way is saved.
    """
    for arm, point, is_final in itertools.product(sweep.arms, _points(sweep), (False, True)):
        config_of(sweep, Trial(arm=arm, point=point, seed=TUNING_SEED, is_final=is_final), overrides)
    for trial in tuning_trials(sweep):
        run_trial(sweep, trial, folder, overrides)
    for arm in sweep.arms:
        for trial in final_trials(sweep, arm, folder):
            run_trial(sweep, trial, folder, overrides)


def tuning_trials(sweep: SweepConfig) -> Iterator[Trial]:
    """Every arm at every point of the grid."""
    points = _points(sweep)
    for arm in sweep.arms:
        for point in points if len(points) > 1 else ():
            yield Trial(arm=arm, point=point, seed=TUNING_SEED, is_final=False)


def _points(sweep: SweepConfig) -> list[dict[str, Any]]:
    return [dict(zip(sweep.grid, values, strict=True)) for values in itertools.product(*sweep.grid.values())]


def final_trials(sweep: SweepConfig, arm: str, folder: Path) -> Iterator[Trial]:
    """An arm's seeds at its best point; none as long as it is not tuned."""
    point = best_point(sweep, arm, folder)
    for seed in range(FINAL_SEED, FINAL_SEED + sweep.seeds) if point is not None else ():
        yield Trial(arm=arm, point=point, seed=seed, is_final=True)


def best_point(sweep: SweepConfig, arm: str, folder: Path) -> Mapping[str, Any] | None:
    """The point whose run was best on the images held out; the first of several."""
    trials = [trial for trial in tuning_trials(sweep) if trial.arm == arm]
    if not trials:
        return _points(sweep)[0]
    results = [read_result(folder, trial) for trial in trials]
    if not all(results):
        return None
    return trials[max(range(len(trials)), key=lambda number: results[number]["top1"])].point


def read_result(folder: Path, trial: Trial) -> dict[str, Any]:
    """A trial's result; empty if it has none."""
    return read_json(folder / "results" / f"{trial.name}.json")


def config_of(sweep: SweepConfig, trial: Trial, overrides: tuple[str, ...] = ()) -> RunConfig:
    """The run that a trial is."""
    parts = [*sweep.arms[trial.arm], *sweep.shared, *overrides]
    parts += [f"{key}={json.dumps(value)}" for key, value in trial.point.items()]
    parts += () if trial.is_final else (*sweep.tuning, f"data.hold_out={sweep.hold_out}")
    files = [part for part in parts if "=" not in part]
    return load_config(files, [*(part for part in parts if "=" in part), f"train.seed={trial.seed}"])


def run_trial(sweep: SweepConfig, trial: Trial, folder: Path, overrides: tuple[str, ...] = ()) -> None:
    """Train, unless the result stands already, and write it down; a run that diverges scores 0."""
    if read_result(folder, trial):
        return
    config, run = config_of(sweep, trial, overrides), folder / "runs" / trial.name
    try:
        report = train(config, run, resume="auto")
        metrics = report.get("ema", report["val"])
        scores = {name: metrics[name] for name in ("top1", "loss", "num_images")} | {"diverged": False}
        facts = {key: report[key] for key in ("model", "data", "epochs", "updates", "seconds", "environment")}
    except NonFiniteError as error:
        scores, facts = {"top1": 0.0, "loss": None, "num_images": 0, "diverged": True}, {"message": str(error)}
    (folder / "results").mkdir(parents=True, exist_ok=True)
    described = {"arm": trial.arm, "point": dict(trial.point), "seed": trial.seed, "is_final": trial.is_final}
    write_json(folder / "results" / f"{trial.name}.json", {**described, **scores, **facts})
    if not trial.is_final:
        shutil.rmtree(run, ignore_errors=True)
