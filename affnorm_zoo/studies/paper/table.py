"""An experiment's results, one row per cell."""

from dataclasses import dataclass
from typing import Any

from affnorm_zoo.evidence.statistics import Sample
from affnorm_zoo.studies.paper.config import PaperConfig
from affnorm_zoo.studies.paper.execute import Results
from affnorm_zoo.studies.paper.experiments import EXPERIMENTS, Cell, final_trials, tuned_rate, tuning_trials


@dataclass(frozen=True)
class Row:
    """A cell, its learning rate, whether the tuned rate is the grid's lowest or highest, and its seeds' results."""

    cell: Cell
    rate: float
    at_edge: bool
    results: tuple[dict[str, Any], ...]

    @property
    def accuracy(self) -> Sample:
        """The seeds' accuracies on the test set."""
        return Sample(tuple(result["accuracy"] for result in self.results))

    def mean_of(self, *path: str | int) -> float:
        """Mean over the seeds of a number inside the results."""
        return sum(_dig(result, path) for result in self.results) / len(self.results)

    def layer_mean(self, *path: str) -> float:
        """Mean over seeds and normalised layers, without the classifier, of a number of the divergence."""
        rows = [_dig(layer, path) for result in self.results for layer in result["divergence"][:-1]]
        return sum(rows) / len(rows)


def rows_of(name: str, config: PaperConfig, results: Results) -> list[Row]:
    """The cells of an experiment that are tuned and have final runs, in the order of its grid."""
    rows = []
    for cell in EXPERIMENTS[name](config):
        if any(results.get(trial) is None for trial in tuning_trials(config, cell)):
            continue
        found = [result for trial in final_trials(config, cell, results) if (result := results.get(trial)) is not None]
        if found:
            rate = tuned_rate(config, cell, results)
            edges = (min(config.rates), max(config.rates))
            rows.append(Row(cell, rate * cell.rate_factor, rate in edges, tuple(found)))
    return rows


def convention_rows(rows: list[Row], method: str, convention: str) -> list[Row]:
    """Rows at the tuned rate, or at a rate scaled with the batch size; both contain the size of the tuning."""
    own = [row for row in rows if row.cell.method == method]
    fixed = [row for row in own if row.cell.rate_factor == 1.0]
    if convention == "fixed":
        return sorted(fixed, key=lambda row: row.cell.batch_size)
    scaled = [row for row in own if row.cell.rate_factor != 1.0]
    sizes = {row.cell.batch_size for row in scaled}
    return sorted(
        scaled + [row for row in fixed if row.cell.batch_size not in sizes], key=lambda row: row.cell.batch_size
    )


def _dig(tree: Any, path: tuple[str | int, ...]) -> float:
    for key in path:
        tree = tree[key]
    return tree
