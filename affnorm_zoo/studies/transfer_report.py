"""Write the page of the transfer study from its runs."""

from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

from affnorm_zoo.evidence.statistics import Sample, paired
from affnorm_zoo.runs.files import write_text
from affnorm_zoo.studies.transfer_grid import (
    RUNS,
    TUNING_SEED,
    Runs,
    Task,
    TransferConfig,
    Trial,
    best_rate,
    read_runs,
)

_HEAD = """\
# Transfer: what to do with trained batch norms

`scripts/study.py report` writes this page from single runs. A network with trained batch norms is fine-tuned on other
images, with small batches.

{verdicts}
{remark}## Methods

| method | what becomes of the batch norms |
|---|---|
| `batchnorm` | kept, in training mode |
| `frozen` | kept, with their trained statistics; γ and β are trained |
| `folded` | multiplied into the convolutions: the same function, no norm |
| `groupnorm` | replaced by group norm, groups of 8 channels, with their γ and β |
| `patchnorm` | `affnorm_zoo.convert` at κ = √n, one-shot, on {num_fit} images of the pool without labels |
| `patchnorm4` | the same at κ = 4√n |

## Protocol

- In every run the classifier starts as a logistic regression on that method's features. A random classifier would
  distort the trained features, and then the method that moves least would win.
- The optimiser is AdamW, weight decay {weight_decay:g}, with 10 % warm-up and a cosine schedule. An SGD step depends on
  how a method scales its weights: fitting a twin at κ = 4√n multiplies them by about 4, which divides an SGD step by 16
  and one of AdamW by 4. The five learning rates span a factor of {span:g}. The learning rate of the twins' biases is
  divided by κ.
- Both batch sizes see the same number of images, each once, mirrored at random.
- Each method has one run per rate (seed {tuning}), scored on held-out training images. Then it has {seeds} runs at its
  best rate, with other seeds, scored on the test images. With the same seed all methods see the same images in the same
  order.
- A learning rate *fails* (†) if its tuning run meets a non-finite loss, or stays below half of the best held-out
  accuracy of any method at that task and batch size.
- Accuracies are means ± the standard deviation over runs, in per cent. Differences are paired by seed, ± the standard
  error of their mean; p is from Student's paired test. A difference with p ≥ 0.05 is within the noise.
"""
_SECTION = """
## {title}

{facts}

{table}"""
_REPEAT = """
## To repeat it

```bash
python scripts/study.py transfer --cifar100 CIFAR100 --imagenette IMAGENETTE
python scripts/study.py report
```

The runs are in [transfer/{runs}](transfer/{runs}). Hardware and versions: {environments}; one thread.
"""
_LEVEL = 0.05
BARS = (("patchnorm4", "batchnorm", 0.0), ("patchnorm4", "folded", -0.3), ("patchnorm", "batchnorm", 0.0),
        ("patchnorm", "folded", -0.3))  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A method at one task and batch size: held-out accuracies by rate, the best rate, and test accuracies by seed."""

    held_out: dict[float, float]
    rate: float | None
    test: dict[int, float]


def cell_of(config: TransferConfig, runs: Runs, task: str, batch_size: int, method: str) -> Cell:
    """Collect what has run."""

    def result(rate: float, seed: int) -> dict[str, Any]:
        trial = Trial(task=task, batch_size=batch_size, method=method, rate=rate, seed=seed)
        return runs.get(trial, {})

    held_out = {rate: found["held_out"] for rate in config.rates if (found := result(rate, TUNING_SEED))}
    rate = best_rate(config, runs, task, batch_size, method)
    seeds = range(TUNING_SEED + 1, TUNING_SEED + 1 + config.seeds)
    test = {} if rate is None else {seed: found["test"] for seed in seeds if (found := result(rate, seed))}
    return Cell(held_out, rate, test)


def write_transfer(config: TransferConfig, folder: Path, page: Path) -> None:
    """Write the page."""
    runs = read_runs(folder)
    sections, bars = [], []
    for batch_size in config.batch_sizes:
        for name, task in config.tasks.items():
            cells = {method: cell_of(config, runs, name, batch_size, method) for method in config.methods}
            sections.append(_section(name, task, batch_size, config, cells))
            if batch_size == config.batch_sizes[0]:
                bars += [_bar_row(name, batch_size, cells, *bar) for bar in BARS]
    head = _HEAD.format(
        verdicts=_table(["task", "batch size", "difference of test accuracies", "wanted", "measured", "verdict"], bars),
        remark=f"{config.remark.strip()}\n\n" if config.remark else "",
        num_fit=config.num_fit,
        weight_decay=config.weight_decay,
        span=config.rates[-1] / config.rates[0],
        tuning=TUNING_SEED,
        seeds=config.seeds,
    )
    environments = {", ".join(f"{k} {v}" for k, v in run["environment"].items()) for run in runs.values()}
    write_text(page, head + "".join(sections) + _REPEAT.format(runs=RUNS, environments="; ".join(sorted(environments))))


@dataclass(frozen=True)
class Difference:
    """A mean difference in points over paired seeds, its standard error and its p value; nan from a single pair."""

    points: float
    error: float
    p: float
    num_pairs: int

    def __str__(self) -> str:
        if self.num_pairs == 1:
            return f"{self.points:+.1f} (one run)"
        return f"{self.points:+.1f} ± {self.error:.1f} (p = {self.p:.2g}, n = {self.num_pairs})"


def difference(ours: Cell, theirs: Cell) -> Difference | None:
    """Compare the test accuracies of the seeds that both have; None without such seeds."""
    seeds = sorted(ours.test.keys() & theirs.test.keys())
    if not seeds:
        return None
    gap = Sample(tuple(100 * (ours.test[seed] - theirs.test[seed]) for seed in seeds))
    p = paired([ours.test[seed] for seed in seeds], [theirs.test[seed] for seed in seeds]) if len(seeds) > 1 else nan
    return Difference(gap.mean, gap.std / len(seeds) ** 0.5, p, len(seeds))


def _bar_row(task: str, batch_size: int, cells: dict[str, Cell], ours: str, theirs: str, bar: float) -> list[str]:
    found = difference(cells[ours], cells[theirs])
    wanted = f"≥ {bar:g}" if bar else "> 0"
    label = [task, str(batch_size), f"`{ours}` - `{theirs}`", wanted]
    if found is None:
        return [*label, "not run", ""]
    met = found.points >= bar if bar else found.points > 0
    noise = "" if found.p < _LEVEL else "; the difference is within the noise"
    return [*label, str(found), ("met" if met else "missed") + noise]


def _section(name: str, task: Task, batch_size: int, config: TransferConfig, cells: dict[str, Cell]) -> str:
    title = f"{name}, batch size {batch_size}"
    if not any(cell.held_out for cell in cells.values()):
        return f"\n## {title}\n\nNot run yet.\n"
    best = max((max(cell.held_out.values(), default=0.0) for cell in cells.values()), default=0.0)
    rows = []
    for method, cell in cells.items():
        rates = [_rate_cell(cell, rate, best) for rate in config.rates]
        against = [
            str(found) if method != base and (found := difference(cell, cells[base])) else ""
            for base in ("folded", "batchnorm")
        ]
        test = str(Sample(tuple(cell.test.values()))) if cell.test else "not run"
        rows.append([f"`{method}`", *rates, test, *against])
    updates = -(-task.num_seen // batch_size)
    facts = (
        f"{task.source}, {task.num_classes} classes, {task.image_size} px; {updates} updates of {batch_size} images. "
        f"The columns of rates hold the tuning runs' accuracy on {task.num_held_out} held-out images, the best in "
        f"bold; `test` that of the final runs on {task.num_test:,} images."
    )
    header = ["method", *(f"{rate:g}" for rate in config.rates), "test", "- folded", "- batchnorm"]
    return _SECTION.format(title=title, facts=facts, table=_table(header, rows))


def _rate_cell(cell: Cell, rate: float, best: float) -> str:
    if rate not in cell.held_out:
        return ""
    accuracy = cell.held_out[rate]
    text = f"{100 * accuracy:.1f}" + "†" * (accuracy < best / 2)
    return f"**{text}**" if rate == cell.rate else text


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"
