"""Compare methods ("arms") at the same budget: tune all on one grid, then run several seeds and score them once."""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from affnorm_zoo.config import RunConfig, is_override, load_config, read_yaml, to_schema
from affnorm_zoo.config.require import require
from affnorm_zoo.runs.files import read_json, write_json
from affnorm_zoo.runs.layout import METRICS_FILE
from affnorm_zoo.training.engine import train
from affnorm_zoo.training.loop import NonFiniteError

TUNING_SEED = 0
FINAL_SEED = 1  # seed of the first final run
POLL_SECONDS = 5.0  # between checks for results of the sweep's other processes


@dataclass(frozen=True, kw_only=True)
class Aim:
    """The target of a comparison: ``arm`` should be at least ``points`` of top-1 (in per cent) above ``over``."""

    arm: str
    over: str
    points: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A comparison.

    Args:
        title: heading on the page of results.
        remark: Markdown below the table.
        arms: name -> config files and overrides that define the arm.
        baseline: the arm that others are compared with.
        shared: config files and overrides of all arms; an arm's own take precedence.
        points: hyperparameter settings to tune over, as values by dotted key. Every arm gets one run per setting.
        tuning: overrides of the tuning runs only, such as fewer epochs.
        hold_out: training images held out as validation images to score the tuning runs.
        seeds: final runs of each arm at its best setting, on the full training set, scored on the validation split.
        aims: targets of the comparison.
        in_readme: the arm that the README's table shows beside the baseline, or empty.
    """

    title: str = ""
    remark: str = ""
    arms: dict[str, list[str]]
    baseline: str
    shared: tuple[str, ...] = ()
    points: tuple[dict[str, Any], ...] = ({},)
    tuning: tuple[str, ...] = ()
    hold_out: int = 5000
    seeds: int = 3
    aims: list[Aim] = field(default_factory=list)
    in_readme: str = ""

    def __post_init__(self) -> None:
        require(len(self.arms) > 0, "arms must name at least one")
        require(self.baseline in self.arms, f"baseline must be one of {', '.join(self.arms)}, got {self.baseline!r}")
        require(len(self.points) > 0, "points must hold at least one")
        require(self.hold_out > 0, f"hold_out must be positive, got {self.hold_out}")
        require(self.seeds > 0, f"seeds must be positive, got {self.seeds}")
        unknown = {name for aim in self.aims for name in (aim.arm, aim.over)} - set(self.arms)
        require(not unknown, f"aims must be about arms, got {', '.join(sorted(unknown))}")
        require(self.in_readme in ("", *self.arms), f"in_readme must be one of the arms, got {self.in_readme!r}")

    @property
    def is_tuned(self) -> bool:
        """Whether there are several settings to choose from; an ablation has one."""
        return len(self.points) > 1


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep: its arm, setting and seed. A run with ``is_final`` is scored on the validation split."""

    arm: str
    point: Mapping[str, Any]
    seed: int
    is_final: bool

    @property
    def name(self) -> str:
        """A file name unique to the trial."""
        point = "_".join(f"{key.rpartition('.')[2]}={value}" for key, value in self.point.items())
        return "_".join(filter(None, [self.arm, point, f"s{self.seed}", "final" if self.is_final else "tune"]))


def load_sweep(path: Path) -> SweepConfig:
    """Read a sweep's YAML.

    Raises:
        UsageError: the file is missing or not YAML, or a key or value is not valid.
    """
    return to_schema(SweepConfig, path, read_yaml(path, SweepConfig))


def run_sweep(sweep: SweepConfig, folder: Path, overrides: tuple[str, ...] = ()) -> None:
    """Make the missing runs; an interrupted one resumes from its checkpoint.

    ``folder/results/NAME.json`` is one run's result. The run folder of a final run is kept, in ``folder/runs/NAME``.
    Several processes may share one folder: each takes runs that no other process is working on.

    Raises:
        UsageError: a config is not valid; nothing has run then.
        PreemptedError: a signal asked for a stop; the current run is saved.
    """
    for arm, point, is_final in product(sweep.arms, sweep.points, (False, True)):
        config_of(sweep, Trial(arm=arm, point=point, seed=TUNING_SEED, is_final=is_final), overrides)
    while missing := _missing_trials(sweep, folder):
        ran = [run_trial(sweep, trial, folder, overrides) for trial in missing]
        if not any(ran):
            time.sleep(POLL_SECONDS)


def _missing_trials(sweep: SweepConfig, folder: Path) -> list[Trial]:
    """The trials that have no result yet and can run: first every arm's first seed, then the second, and so on."""
    finals = [trial for arm in sweep.arms for trial in final_trials(sweep, arm, folder)]
    trials = tuning_trials(sweep) + sorted(finals, key=lambda trial: trial.seed)
    return [trial for trial in trials if not read_result(folder, trial)]


def tuning_trials(sweep: SweepConfig) -> list[Trial]:
    """Every arm at every setting; none if there is only one setting."""
    if not sweep.is_tuned:
        return []
    pairs = product(sweep.arms, sweep.points)
    return [Trial(arm=arm, point=point, seed=TUNING_SEED, is_final=False) for arm, point in pairs]


def final_trials(sweep: SweepConfig, arm: str, folder: Path) -> list[Trial]:
    """An arm's seeds at its best setting; none until it is tuned."""
    point = best_point(sweep, arm, folder)
    if point is None:
        return []
    seeds = range(FINAL_SEED, FINAL_SEED + sweep.seeds)
    return [Trial(arm=arm, point=point, seed=seed, is_final=True) for seed in seeds]


def best_point(sweep: SweepConfig, arm: str, folder: Path) -> Mapping[str, Any] | None:
    """The setting whose tuning run scored best; the first if several tie. None until all tuning runs have a result."""
    if not sweep.is_tuned:
        return sweep.points[0]
    results = [read_result(folder, trial) for trial in tuning_trials(sweep) if trial.arm == arm]
    if not all(results):
        return None
    return sweep.points[max(range(len(results)), key=lambda number: results[number]["top1"])]


def read_result(folder: Path, trial: Trial) -> dict[str, Any]:
    """A trial's result; empty if there is none yet."""
    return read_json(folder / "results" / f"{trial.name}.json")


def config_of(sweep: SweepConfig, trial: Trial, overrides: tuple[str, ...] = ()) -> RunConfig:
    """The config of a trial's run."""
    held_out = [] if trial.is_final else [f"data.hold_out={sweep.hold_out}"]
    parts = [*sweep.shared, *sweep.arms[trial.arm], *held_out, *overrides]
    parts += [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in trial.point.items()]
    parts += () if trial.is_final else sweep.tuning
    files = [part for part in parts if not is_override(part)]
    config = load_config(files, [*(part for part in parts if part not in files), f"train.seed={trial.seed}"])
    require(config.data.task == "classification", "a sweep compares top-1, which data.task=multilabel does not measure")
    return config


def run_trial(sweep: SweepConfig, trial: Trial, folder: Path, overrides: tuple[str, ...] = ()) -> bool:
    """Train and write the result; a run that diverges scores 0.

    Returns:
        Whether it ran. It does not if it has a result, or another process is running it.
    """
    for part in ("results", "runs", "locks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    run = folder / "runs" / trial.name
    try:
        with FileLock(folder / "locks" / trial.name, timeout=0):
            if read_result(folder, trial):
                return False
            config = config_of(sweep, trial, overrides)
            described = {"arm": trial.arm, "point": dict(trial.point), "seed": trial.seed, "is_final": trial.is_final}
            result = {**described, "note": config.data.note, **_train_trial(config, run)}
            write_json(folder / "results" / f"{trial.name}.json", result)
    except Timeout:
        return False
    if not trial.is_final:
        shutil.rmtree(run, ignore_errors=True)
    return True


def _train_trial(config: RunConfig, run: Path) -> dict[str, Any]:
    try:
        report = train(config, run, resume="auto")
    except NonFiniteError as error:
        return {"top1": 0.0, "loss": None, "num_images": 0, "diverged": True, "message": str(error)}
    metrics = report.get("ema", report["val"])
    scores = {name: metrics[name] for name in ("top1", "loss", "num_images")} | {"diverged": False}
    facts = (
        "model", "data", "num_train_images", "epochs", "updates", "train_loss", "seconds", "precision", "environment"
    )  # fmt: skip
    return scores | {key: report[key] for key in facts} | _attention_factors(run / METRICS_FILE)


def _attention_factors(metrics: Path) -> dict[str, Any]:
    """What a run that measured its divergence found in attention, first and last; empty for others."""
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    found = [record["attention"] for record in records if record["kind"] == "divergence" and record["attention"]]
    return {"attention": {"first": found[0], "last": found[-1]}} if found else {}
