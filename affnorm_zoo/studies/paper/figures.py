"""One PNG figure per experiment; needs the extra ``plots``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from affnorm_zoo.studies.paper.table import Row, convention_rows

COLOURS = {
    "none": "#777777", "batchnorm": "#d1495b", "layernorm": "#e58f1f", "rmsnorm": "#b8a100",
    "norm_like": "#3c8d53", "norm_like_half": "#8fc79e", "affine_like": "#2a6f97", "affine_like_rms": "#8e5aa8",
    "patchnorm": "#2a6f97", "patchnorm_l2": "#3c8d53", "patchnorm_rms": "#8e5aa8",
    "patchnorm_rms_gain": "#c39bd3", "patchnorm_rms_ws": "#5b2c6f",
}  # fmt: skip


def draw(experiment: str, rows: list[Row], target: Path) -> None:
    """Draw an experiment's rows into a PNG file.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.4 if _PAINTERS[experiment] is _fc else 4.2), layout="constrained")
    _PAINTERS[experiment](figure, rows)
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, format="png", dpi=110)


def _fc(figure: Any, rows: list[Row]) -> None:
    panels = list(dict.fromkeys(row.cell.net.rpartition("x")[0] for row in rows))
    shape = (2, len(panels) // 2) if len(panels) % 2 == 0 and len(panels) > 2 else (1, len(panels))
    grid = figure.subplots(*shape, sharex=True, squeeze=False).flat
    for axes, panel in zip(grid, panels, strict=True):
        own = [row for row in rows if row.cell.net.rpartition("x")[0] == panel]
        for method in dict.fromkeys(row.cell.method for row in own):
            line = [row for row in own if row.cell.method == method]
            _line(axes, [int(row.cell.net.rpartition("x")[2]) for row in line], line, method)
        activation, depth = panel.split("-")
        axes.set_title(f"{activation}, {depth} layers", fontsize=10)
        axes.set_xscale("log", base=2)
        _label(axes, "width")
    figure.axes[0].legend(fontsize=8)


def _batch_size(figure: Any, rows: list[Row]) -> None:
    for axes, convention in zip(figure.subplots(1, 2, sharey=True), ("fixed", "scaled"), strict=True):
        for method in dict.fromkeys(row.cell.method for row in rows):
            line = convention_rows(rows, method, convention)
            _line(axes, [row.cell.batch_size for row in line], line, method)
        kind = "kept" if convention == "fixed" else "scaled with the batch size"
        axes.set_title(f"learning rate {kind}", fontsize=10)
        axes.set_xscale("log", base=2)
        _label(axes, "batch size")
    figure.axes[0].legend(fontsize=8)


def _conv(figure: Any, rows: list[Row]) -> None:
    axes = figure.subplots()
    nets = list(dict.fromkeys(row.cell.net for row in rows))
    methods = list(dict.fromkeys(row.cell.method for row in rows))
    for number, method in enumerate(methods):
        line = [row for row in rows if row.cell.method == method]
        shift = (number - (len(methods) - 1) / 2) * 0.09
        _line(axes, [nets.index(row.cell.net) + shift for row in line], line, method, linestyle="none")
    axes.set_xticks(range(len(nets)), nets, fontsize=8)
    _label(axes, "")
    axes.legend(fontsize=8, ncols=2)


def _scale_invariance(figure: Any, rows: list[Row]) -> None:
    accuracy, cosine = figure.subplots(1, 2)
    for colour, net in zip(
        ("#2a6f97", "#d1495b", "#3c8d53"), dict.fromkeys(row.cell.net for row in rows), strict=False
    ):
        line = [row for row in rows if row.cell.net == net]
        kappas = [float(row.cell.method.removeprefix("kappa=")) for row in line]
        _line(accuracy, kappas, line, net, color=colour)
        cosine.plot(kappas, [row.layer_mean("interference", "mean") for row in line], "o-", ms=4, lw=1.2, color=colour)
    for axes in (accuracy, cosine):
        axes.set_xscale("symlog", linthresh=0.1)
        _label(axes, "κ (0: norm_like without bias, 1: affine_like, large: the plain affine map)")
    cosine.set_ylabel("how far samples move each other", fontsize=9)
    accuracy.legend(fontsize=8)


def _alignment(figure: Any, rows: list[Row]) -> None:
    axes = figure.subplots()
    for row in rows:
        x, y = row.layer_mean("cv"), row.accuracy
        colour = COLOURS[row.cell.method]
        axes.errorbar(max(x, 1e-8), 100 * y.mean, 100 * y.std, marker="o", color=colour, capsize=3)
        axes.annotate(
            row.cell.method, (max(x, 1e-8), 100 * y.mean), xytext=(7, 5), textcoords="offset points", fontsize=8
        )
    axes.set_xscale("log")
    _label(axes, "standard deviation / mean of the self factor, mean over the convolutions of the trained network")


def _natural(figure: Any, rows: list[Row]) -> None:
    axes = figure.subplots()
    for number, row in enumerate(rows):
        for shift, state in ((-0.12, "untrained"), (0.12, "trained")):
            values = [result["natural_cosine"][state] for result in row.results]
            filled = {"color": COLOURS[row.cell.method], "alpha": 0.45 if state == "untrained" else 1.0}
            axes.bar(number + shift, sum(values) / len(values), width=0.22, **filled)
            axes.plot([number + shift] * len(values), values, linestyle="none", marker=".", color="black", ms=4)
    axes.set_xticks(range(len(rows)), [row.cell.method for row in rows])
    axes.set_ylabel("cosine with the natural gradient\n(pale: untrained; points: seeds)")


_PAINTERS: dict[str, Callable[[Any, list[Row]], None]] = {
    "fc": _fc,
    "fc-adam": _fc,
    "batch-size": _batch_size,
    "conv": _conv,
    "scale-invariance": _scale_invariance,
    "alignment": _alignment,
    "natural-gradient": _natural,
}


def _line(axes: Any, x: list[float], rows: list[Row], label: str, **style: Any) -> None:
    """Means with error bars of one standard deviation of a run."""
    style = {"color": COLOURS.get(label), **style}
    means, deviations = ([100 * getattr(row.accuracy, name) for row in rows] for name in ("mean", "std"))
    axes.errorbar(x, means, deviations, marker="o", ms=4, lw=1.2, capsize=2, label=label, **style)


def _label(axes: Any, x: str) -> None:
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel("test accuracy, %", fontsize=9)
