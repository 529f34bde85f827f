"""The grid of the transfer study: which runs there are, in which order, and which have a result."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affnorm_zoo.config import read_yaml, to_schema
from affnorm_zoo.config.require import require
from affnorm_zoo.studies.methods import METHODS

RUNS = "runs.jsonl"
TUNING_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Task:
    """A source network and the images that it is fine-tuned on.

    Args:
        source: ``tf_efficientnet_lite0``, or a model of timm's with weights that travel with this package.
        image_size: pixels.
        num_classes: the data's first classes by name, whose images alone are used.
        val_split: the data's split that becomes the test images.
        num_seen: training images seen by one run, each once, drawn from the pool by its seed.
        num_pool, num_held_out: training images to draw from, and to choose the rate on.
        num_test: test images.
        head_c: inverse strength of the L2 penalty on the classifier that a run starts from, scikit-learn's ``C``.
    """

    source: str
    image_size: int
    num_classes: int
    val_split: str
    num_seen: int
    num_pool: int
    num_held_out: int
    num_test: int
    head_c: float

    def __post_init__(self) -> None:
        require(self.num_classes > 2, f"num_classes must be at least 3, got {self.num_classes}")
        require(self.num_seen <= self.num_pool, f"num_seen must be at most num_pool, got {self.num_seen}")


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """The grid. Per task, batch size and method: one run per rate, then ``seeds`` runs at the best rate.

    Args:
        tasks: by name.
        batch_sizes: images per update.
        methods: names from :data:`affnorm_zoo.studies.methods.METHODS`.
        rates: learning rates of AdamW.
        weight_decay: of AdamW; one-dimensional parameters have none.
        seeds: final runs, with other seeds than the tuning run.
        num_fit: images of the pool, without labels, for methods that fit layers to data.
        remark: Markdown on the page of results, below the verdicts.
    """

    tasks: dict[str, Task]
    batch_sizes: tuple[int, ...]
    methods: tuple[str, ...]
    rates: tuple[float, ...]
    weight_decay: float
    seeds: int
    num_fit: int
    remark: str = ""

    def __post_init__(self) -> None:
        unknown = set(self.methods) - set(METHODS)
        require(not unknown, f"methods must be among {', '.join(METHODS)}, got {', '.join(sorted(unknown))}")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run. The tuning run is scored on held-out training images; a final run also on the test images."""

    task: str
    batch_size: int
    method: str
    rate: float
    seed: int

    @property
    def is_final(self) -> bool:
        """Whether the run sees the test images."""
        return self.seed != TUNING_SEED


Runs = dict[Trial, dict[str, Any]]


def load_transfer_config(path: Path) -> TransferConfig:
    """Read the YAML.

    Raises:
        UsageError: the file is missing or not YAML, or a key or value does not fit.
    """
    return to_schema(TransferConfig, path, read_yaml(path, TransferConfig))


def read_runs(folder: Path) -> Runs:
    """The results so far, by trial."""
    path = folder / RUNS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    results = [json.loads(line) for line in lines]
    return {Trial(**{name: result[name] for name in Trial.__dataclass_fields__}): result for result in results}


def best_rate(config: TransferConfig, runs: Runs, task: str, batch_size: int, method: str) -> float | None:
    """The rate whose tuning run scored best on held-out images, the lowest if several tie; None until all have run."""
    tuning = [Trial(task=task, batch_size=batch_size, method=method, rate=r, seed=TUNING_SEED) for r in config.rates]
    if any(trial not in runs for trial in tuning):
        return None
    return max(tuning, key=lambda trial: runs[trial]["held_out"]).rate


def trials(config: TransferConfig, runs: Runs) -> Iterator[Trial]:
    """All trials that can run, in their order: a cut at any time leaves the methods with equally many runs.

    The batch sizes come one after the other. Within one, all methods are tuned on all tasks; then every method gets its
    first final seed, its second, and so on.
    """
    for batch_size in config.batch_sizes:
        for seed in range(TUNING_SEED, TUNING_SEED + config.seeds + 1):
            for task in config.tasks:
                best = {method: best_rate(config, runs, task, batch_size, method) for method in config.methods}
                for rate in config.rates:
                    for method in config.methods:
                        if seed == TUNING_SEED or rate == best[method]:
                            yield Trial(task=task, batch_size=batch_size, method=method, rate=rate, seed=seed)
