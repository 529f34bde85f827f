"""Figures of the divergence: along the depth of several models, and over a run."""

import json
import statistics
from pathlib import Path
from typing import Any

COLOURS = ("#2a6f97", "#d1495b", "#3c8d53", "#8e5aa8", "#c77c11", "#555555")


def plot_depth(models: dict[str, list[dict[str, Any]]], target: Path, caption: str) -> None:
    """Draw the results of :meth:`DivergenceMeter.summary` for several models in one figure.

    Args:
        models: model name -> rows.
        target: PNG file.
        caption: text under the figure.

    Raises:
        ImportError: matplotlib is missing; it comes with the extra ``plots``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.2), layout="constrained")
    (factor, cosine), (cross, interference) = figure.subplots(2, 2)
    for colour, (name, rows) in zip(COLOURS, models.items(), strict=False):
        depth = [(index + 0.5) / len(rows) for index in range(len(rows))]
        own = [row["self_factor"] for row in rows]
        factor.plot(depth, [1.0] * len(rows), color=colour, lw=0.6, alpha=0.6)
        low, high = ([row[f"p{q}"] / row["mean"] for row in own] for q in ("01", "99"))
        factor.fill_between(depth, low, high, color=colour, alpha=0.25, lw=0)
        for edge in (low, high):
            factor.plot(depth, edge, color=colour, lw=1.2, marker=".", ms=4)
        factor.plot([], [], color=colour, lw=5, alpha=0.5, label=name)
        share = [row["cross_factor"]["mean"] / row["factor"]["mean"] for row in rows]
        cross.plot(depth, share, color=colour, lw=1.2, marker=".", ms=4, label=name)
        for axes, quantity in ((cosine, "cosine"), (interference, "interference")):
            middle = [row[quantity]["p50"] for row in rows]
            low, high = ([row[quantity][q] for row in rows] for q in ("p25", "p75"))
            axes.plot(depth, middle, color=colour, lw=1.2, marker=".", ms=4, label=name)
            axes.fill_between(depth, low, high, color=colour, alpha=0.2, lw=0)
    factor.set_yscale("log")
    labels = {
        factor: ("self factor / its mean, 1st to 99th percentile", "How unevenly samples learn"),
        cosine: ("cosine(Δz, -g), median and quartiles", "Where a sample's own step moves it"),
        cross: ("share of the factor from other positions", "How far positions that share weights move each other"),
        interference: ("kernel between samples, median and quartiles", "How far samples move each other"),
    }
    for axes, (label, title) in labels.items():
        axes.set_title(title, fontsize=10)
        axes.set_ylabel(label, fontsize=9)
        axes.set_xlabel("depth (first layer at 0, last at 1)", fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    factor.legend(fontsize=8)
    figure.supxlabel(caption, fontsize=8)
    figure.savefig(target, dpi=120)


def plot_training(metrics: Path, target: Path) -> bool:
    """Draw the alignment over a run, from its ``metrics.jsonl``.

    Returns:
        Whether the figure was drawn: the run must have measurements, and matplotlib must be installed.
    """
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    records = [record for record in records if record["kind"] == "divergence"]
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    if not records:
        return False
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = {
        "cv": ("standard deviation / mean of the self factor", "Unevenness over samples and positions"),
        "step_cosine": ("cosine(Δz, -ηg)", "The optimiser's step, other layers held"),
        "step_moving_cosine": ("cosine(Δz, -ηg)", "The optimiser's step, all layers moving"),
    }
    updates = [record["update"] for record in records]
    for axes, (column, (label, title)) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        layers = [[row[column] for row in record["layers"] if row.get(column) is not None] for record in records]
        axes.plot(
            updates, [statistics.median(values) for values in layers], color=COLOURS[0], lw=1.5, label="median layer"
        )
        low, high = [min(values) for values in layers], [max(values) for values in layers]
        axes.fill_between(updates, low, high, color=COLOURS[0], alpha=0.2, lw=0, label="all layers")
        axes.set_title(title, fontsize=10)
        axes.set_ylabel(label, fontsize=9)
        axes.set_xlabel("update", fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(target, format="png", dpi=120)
    return True
