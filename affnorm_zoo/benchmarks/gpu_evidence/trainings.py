"""Train our network and its twin for the same number of epochs, as many as the step's seconds allow."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock

from affnorm_zoo.benchmarks.gpu_evidence.record import StepRecord
from affnorm_zoo.benchmarks.gpu_evidence.sizes import Sizes
from affnorm_zoo.config import RunConfig, load_config
from affnorm_zoo.data import pack
from affnorm_zoo.training import train
from affnorm_zoo.training.assemble import assemble
from affnorm_zoo.training.processes import build_accelerator

_WARM_UP, _TIMED = 10, 20  # updates to measure the speed of a network
_RESERVE = 0.85  # share of the seconds for training; recompiling and evaluating take the rest
_SEED = 1


@dataclass(frozen=True, kw_only=True)
class Contest:
    """A recipe and its contenders; the twin comes first.

    Args:
        config: file of the recipe.
        data: name of the carried data set.
        overrides: overrides of all contenders.
        contenders: name -> overrides, including its tuned learning rate.
        share: share of ``Sizes.train_seconds``.
    """

    config: str
    data: str
    overrides: tuple[str, ...] = ()
    contenders: dict[str, tuple[str, ...]]
    share: float = 1.0


def run_contest(
    record: StepRecord, sizes: Sizes, contest: Contest, packed: Path, find_data: Callable[[str], Path], output: Path
) -> None:
    """Train every contender; a run that was stopped resumes from its last checkpoint.

    Args:
        packed: the packed data set; created if missing.
        find_data: name of a data set -> the folder to pack.
        output: folder of the runs.
    """
    shared = (*contest.overrides, *sizes.overrides, f"train.seed={_SEED}")
    packed.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(packed.with_suffix(".lock")):
        if not packed.is_file():
            workers = os.cpu_count() if record.device.type == "cuda" else 0
            folder = find_data(contest.data)
            overrides = [*shared, f"data.path={folder}", f"data.workers={workers}"]
            pack(load_config([contest.config], overrides).data, packed)

    def config_of(name: str, *overrides: str) -> RunConfig:
        return load_config([contest.config], [*shared, f"data.path={packed}", *contest.contenders[name], *overrides])

    configs = [config_of(name) for name in contest.contenders]
    epochs = record.row("epochs", partial(_affordable_epochs, sizes, configs, sizes.train_seconds * contest.share))
    for name in contest.contenders if epochs is not None else ():
        config = config_of(name, f"train.epochs={epochs}", f"train.eval_epochs={epochs}")
        record.row(name, partial(_train, config, output / name))


def _affordable_epochs(sizes: Sizes, configs: list[RunConfig], seconds: float) -> int:
    """The number of epochs that fits, the same for all contenders, from the speed of each."""
    if sizes.max_epochs == 1:
        return 1
    start = time.perf_counter()
    per_epoch = sum(map(_seconds_per_epoch, configs))
    left = _RESERVE * (seconds - (time.perf_counter() - start))
    return max(2, min(sizes.max_epochs, int(left / per_epoch)))


def _seconds_per_epoch(config: RunConfig) -> float:
    """Timed over some updates after the first ones, which compile."""
    trainer = assemble(config, build_accelerator(config.runtime)).trainer
    windows = trainer.windows()

    def advance(count: int) -> float:
        start = time.perf_counter()
        for _ in islice(windows, count):
            pass
        trainer.drain()  # waits for the device
        return time.perf_counter() - start

    advance(_WARM_UP)
    return advance(_TIMED) / _TIMED * trainer.batches.num_updates


def _train(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Train, and return the part of the report that tables need."""
    report = train(config, folder, resume="auto")
    facts = ("model", "data", "num_train_images", "epochs", "updates", "seconds", "precision")
    return {"top1": report["val"]["top1"], "loss": report["val"]["loss"], "num_images": report["val"]["num_images"]} | {
        key: report[key] for key in facts
    }
