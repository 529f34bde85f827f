"""Figures of the divergence: along the depth of several models, over a run, and over a picture."""

import json
import statistics
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

COLOURS = ("#2a6f97", "#d1495b", "#3c8d53", "#8e5aa8", "#c77c11", "#555555")


def plot_depth(
    models: dict[str, list[dict[str, Any]]], target: Path, caption: str, attention: dict[str, list[dict[str, Any]]]
) -> None:
    """Draw the results of a :class:`DivergenceMeter` for several models in one figure.

    Args:
        models: model name -> rows of :meth:`DivergenceMeter.summary`.
        target: PNG file.
        caption: text under the figure.
        attention: model name -> rows of :meth:`DivergenceMeter.attention_summary`; any rows get panels of their own.

    Raises:
        ImportError: matplotlib is missing; it comes with the extra ``plots``.
    """
    from matplotlib.figure import Figure

    num_rows = 3 if any(attention.values()) else 2
    figure = Figure(figsize=(11, 3.6 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, 2)
    (factor, cosine), (cross, interference) = panels[:2]
    for colour, (name, rows) in zip(COLOURS, models.items(), strict=False):
        depth = [(index + 0.5) / len(rows) for index in range(len(rows))]
        _plot_band(factor, depth, [row["self_factor"] for row in rows], colour, name)
        share = [row["cross_factor"]["mean"] / row["factor"]["mean"] for row in rows]
        cross.plot(depth, share, color=colour, lw=1.2, marker=".", ms=4, label=name)
        for axes, quantity in ((cosine, "cosine"), (interference, "interference")):
            middle = [row[quantity]["p50"] for row in rows]
            low, high = ([row[quantity][q] for row in rows] for q in ("p25", "p75"))
            axes.plot(depth, middle, color=colour, lw=1.2, marker=".", ms=4, label=name)
            axes.fill_between(depth, low, high, color=colour, alpha=0.2, lw=0)
    labels = {
        factor: ("self factor / its mean, 1st to 99th percentile", "How unevenly samples learn"),
        cosine: ("cosine(Δz, -g), median and quartiles", "Where a sample's own step moves it"),
        cross: ("share of the factor from other positions", "How far positions that share weights move each other"),
        interference: ("kernel between samples, median and quartiles", "How far samples move each other"),
    }
    for axes, kind in zip(panels[2:].flatten(), ("mixed values", "logits"), strict=False):
        labels[axes] = ("factor / its mean, 1st to 99th percentile", f"How unevenly the {kind} of attention learn")
        for colour, (name, rows) in zip(COLOURS, attention.items(), strict=False):
            own = [row["factor"] for row in rows if row["kind"] == kind]
            _plot_band(axes, [(index + 0.5) / len(own) for index in range(len(own))], own, colour, name)
    for axes, (label, title) in labels.items():
        axes.set_title(title, fontsize=10)
        axes.set_ylabel(label, fontsize=9)
        axes.set_xlabel("depth (first layer at 0, last at 1)", fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    factor.legend(fontsize=8)
    figure.supxlabel(caption, fontsize=8)
    figure.savefig(target, dpi=120)


def _plot_band(axes: Any, depth: list[float], own: list[dict[str, Any]], colour: str, name: str) -> None:
    """The range between a factor's 1st and 99th percentile, over its mean, on a logarithmic axis."""
    axes.plot(depth, [1.0] * len(depth), color=colour, lw=0.6, alpha=0.6)
    low, high = ([row[f"p{q}"] / row["mean"] for row in own] for q in ("01", "99"))
    axes.fill_between(depth, low, high, color=colour, alpha=0.25, lw=0)
    for edge in (low, high):
        axes.plot(depth, edge, color=colour, lw=1.2, marker=".", ms=4)
    axes.plot([], [], color=colour, lw=5, alpha=0.5, label=name)
    axes.set_yscale("log")


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
    for axes, (column, (label, title)) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        given = [[row[column] for row in record["layers"] if row.get(column) is not None] for record in records]
        # a step at a learning rate of zero, a schedule's last, moves nothing and has no direction
        updates = [record["update"] for record, values in zip(records, given, strict=True) if values]
        layers = list(filter(None, given))
        medians = [statistics.median(values) for values in layers]
        axes.plot(updates, medians, color=COLOURS[0], lw=1.5, label="median layer")
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


def plot_maps(pictures: Tensor, maps: dict[str, Tensor], target: Path | BinaryIO, caption: str) -> None:
    """Draw heat maps over pictures: one row per picture, one column per model, on one colour scale.

    Args:
        pictures: (N, 1 or 3, H, W), in [0, 1].
        maps: model name -> (N, rows, columns) of :func:`affnorm_zoo.diagnostics.factor_map`. Each model's factors are
            divided by their mean, as models of different scales have different means.
        target: PNG file.
        caption: text under the figure.

    Raises:
        ImportError: matplotlib is missing; it comes with the extra ``plots``.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    height, width = pictures.shape[2:]
    relative = {name: factors / factors.mean().clamp_min(1e-30) for name, factors in maps.items()}
    # 1, the mean, is the middle of the scale; the colours of a flat map do not show rounding errors
    limit = max(1.25, *(max(r.max().item(), 1 / r.clamp_min(1e-2).min().item()) for r in relative.values()))
    figure = Figure(figsize=(2.6 * (len(maps) + 1) + 0.8, 2.75 * len(pictures) + 0.5), layout="constrained")
    colours = {"cmap": "coolwarm", "norm": LogNorm(1 / limit, limit, clip=True), "alpha": 0.65}
    grid = figure.subplots(len(pictures), len(maps) + 1, squeeze=False)
    for row, picture in zip(grid, pictures, strict=True):
        row[0].imshow(picture.expand(3, -1, -1).permute(1, 2, 0).numpy())
        for axes in row:
            axes.set(xticks=[], yticks=[])
    for column, (name, factors) in zip(grid.T[1:], relative.items(), strict=True):
        column[0].set_title(name, fontsize=9)
        for axes, picture, values in zip(column, pictures, factors, strict=True):
            over = {"extent": (0, width, height, 0)}
            axes.imshow(picture.mean(0).numpy(), cmap="gray", vmin=-1, vmax=1, **over)  # pale, under the colours
            heat = axes.imshow(values.numpy(), **colours, **over)
            axes.set_xlabel(f"{values.min():.3g} to {values.max():.3g}", fontsize=8)
    scale = figure.colorbar(heat, ax=grid.ravel().tolist(), label="self factor / its mean", shrink=0.8)
    scale.set_ticks([1 / limit, 1, limit], labels=[f"{tick:.2g}" for tick in (1 / limit, 1, limit)])
    scale.minorticks_off()
    figure.supxlabel(caption, fontsize=8)
    figure.savefig(target, format="png", dpi=120)


def plot_spread(models: dict[str, dict[str, Tensor]], target: Path | BinaryIO) -> None:
    """Draw how far the factor varies over one picture, layer by layer.

    Args:
        models: model name -> layer -> (1, rows, columns) of :func:`affnorm_zoo.diagnostics.factor_map`.
        target: PNG file.

    Raises:
        ImportError: matplotlib is missing; it comes with the extra ``plots``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots()
    for colour, (name, layers) in zip(COLOURS, models.items(), strict=False):
        depth = [(index + 0.5) / len(layers) for index in range(len(layers))]
        relative = [factors / factors.mean().clamp_min(1e-30) for factors in layers.values()]
        low, high = [r.min().clamp_min(1e-2).item() for r in relative], [r.max().item() for r in relative]
        axes.fill_between(depth, low, high, color=colour, alpha=0.25, lw=0)
        axes.plot(depth, low, color=colour, lw=1.2, marker=".", ms=4)
        axes.plot(depth, high, color=colour, lw=1.2, marker=".", ms=4, label=name)
    axes.set_yscale("log")
    axes.set_title("How unevenly the positions of the picture learn", fontsize=10)
    axes.set_ylabel("self factor / its mean, least and largest", fontsize=9)
    axes.set_xlabel("depth (first layer at 0, last at 1)", fontsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)
    figure.savefig(target, format="png", dpi=120)
