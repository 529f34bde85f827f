"""The experiments: which networks are tuned, and which final runs follow at the tuned learning rates."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from affnorm_zoo.config import DataConfig
from affnorm_zoo.errors import UsageError
from affnorm_zoo.studies.paper.config import PaperConfig
from affnorm_zoo.studies.paper.execute import Results, complete
from affnorm_zoo.studies.paper.trial import Trial, load_arrays

TUNING_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a grid: several seeds run at the learning rate tuned for ``net`` and ``method``.

    The tuned rate is multiplied by ``rate_factor``.
    """

    net: str
    method: str
    batch_size: int
    rate_factor: float = 1.0


def grid(config: PaperConfig) -> Iterator[Cell]:
    """Every network with every method, at the batch size of the tuning."""
    for net in config.nets:
        for method in config.methods:
            yield Cell(net=net, method=method, batch_size=config.batch_sizes[0])


def kappas(config: PaperConfig) -> Iterator[Cell]:
    """Every network with every κ."""
    for net in config.nets:
        for kappa in config.kappas:
            yield Cell(net=net, method=f"kappa={kappa:g}", batch_size=config.batch_sizes[0])


def batch_sizes(config: PaperConfig) -> Iterator[Cell]:
    """Every network with every method and batch size, at the tuned rate and at one scaled with the batch size."""
    for cell in grid(config):
        for size in config.batch_sizes:
            yield replace(cell, batch_size=size)
            if size != cell.batch_size:
                yield replace(cell, batch_size=size, rate_factor=size / cell.batch_size)


EXPERIMENTS: dict[str, Callable[[PaperConfig], Iterator[Cell]]] = {
    "fc": grid,
    "fc-adam": grid,
    "batch-size": batch_sizes,
    "conv": grid,
    "scale-invariance": kappas,
    "alignment": grid,
    "natural-gradient": grid,
}


def run_experiment(name: str, config: PaperConfig, data: DataConfig, folder: Path, workers: int) -> Results:
    """Tune each network and method on validation images, then run the seeds and score them on the test set.

    Runs that have a result in ``folder`` are not repeated.

    Raises:
        UsageError: the data cannot be read, or ``folder`` has results on other data.
    """
    results = Results(folder)
    arrays = load_arrays(data, config.num_train, config.num_val)
    others = results.data_names() - {arrays.name}
    if others:
        raise UsageError(f"{folder} holds results on {', '.join(sorted(others))}, not {arrays.name}; choose another")
    cells = list(EXPERIMENTS[name](config))
    tuning = [trial for cell in cells for trial in tuning_trials(config, cell)]
    complete(tuning, arrays, results, workers, f"{name}: tuning")
    complete([trial for cell in cells for trial in final_trials(config, cell, results)], arrays, results, workers, name)
    return results


def tuning_trials(config: PaperConfig, cell: Cell) -> list[Trial]:
    """One run per learning rate, scored on validation images."""
    at = replace(cell, batch_size=config.batch_sizes[0])
    return [_trial(config, at, rate, TUNING_SEED, score="val") for rate in config.rates]


def tuned_rate(config: PaperConfig, cell: Cell, results: Results) -> float:
    """The learning rate of the best tuning run; the lowest if several tie."""
    scores = {trial.rate: _accuracy(results.get(trial)) for trial in tuning_trials(config, cell)}
    return max(sorted(scores), key=lambda rate: scores[rate])


def final_trials(config: PaperConfig, cell: Cell, results: Results) -> list[Trial]:
    """One run per seed at the cell's learning rate, scored on the test set."""
    rate = tuned_rate(config, cell, results) * cell.rate_factor
    measured = {"probes": config.probes, "fisher": config.fisher}
    seeds = range(TUNING_SEED + 1, TUNING_SEED + 1 + config.seeds)
    return [_trial(config, cell, rate, seed, score="test", **measured) for seed in seeds]


def _trial(config: PaperConfig, cell: Cell, rate: float, seed: int, **scored: Any) -> Trial:
    return Trial(
        net=cell.net,
        method=cell.method,
        rate=rate,
        batch_size=cell.batch_size,
        epochs=config.epochs,
        num_train=config.num_train,
        seed=seed,
        optimizer=config.optimizer,
        start=config.start,
        map_classifier=config.map_classifier,
        **scored,
    )


def _accuracy(result: dict[str, Any] | None) -> float:
    assert result is not None, "the tuning runs are made first"
    return result["accuracy"]
