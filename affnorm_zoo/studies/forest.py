"""Forest plots: estimates with their intervals, one below the other."""

from dataclasses import dataclass
from pathlib import Path

from affnorm_zoo.evidence.statistics import Estimate

_ROW = 0.19  # inches


@dataclass(frozen=True)
class Effect:
    """One line of the plot.

    Args:
        label: what was estimated.
        estimate: in points.
        kind: its entry in the legend, a key of the plot's colours.
    """

    label: str
    estimate: Estimate
    kind: str


def draw_forest(groups: dict[str, list[Effect]], colours: dict[str, str], target: Path, x: str) -> None:
    """Draw effects with 95 % intervals into a PNG file.

    Args:
        groups: heading -> its lines. Groups without lines are left out.
        colours: kind -> colour, in the order of the legend.
        target: the PNG file.
        x: what the axis shows.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.figure import Figure

    groups = {heading: effects for heading, effects in groups.items() if effects}
    rows = sum(len(effects) + 1 for effects in groups.values())
    figure = Figure(figsize=(8.5, _ROW * rows + 0.9), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="#999999", lw=0.8)
    ticks, used = [], set()
    for heading, effects in groups.items():
        ticks.append(heading)
        for effect in effects:
            found, label = effect.estimate, "" if effect.kind in used else effect.kind
            margins = [[found.value - found.low], [found.high - found.value]]
            axes.errorbar(
                found.value, len(ticks), xerr=margins, marker="o", ms=4, lw=1.3, color=colours[effect.kind], label=label
            )
            used.add(effect.kind)
            ticks.append(effect.label)
    axes.set_yticks(range(len(ticks)), ticks, fontsize=8)
    for text in axes.get_yticklabels():
        text.set_fontweight("bold" if text.get_text() in groups else "normal")
    axes.set_ylim(len(ticks) - 0.3, -0.7)
    axes.set_xlabel(x, fontsize=9)
    handles = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    shown = [kind for kind in colours if kind in handles]
    axes.legend([handles[kind] for kind in shown], shown, fontsize=8, frameon=False)
    axes.grid(axis="x", alpha=0.25)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(target, format="png", dpi=100, metadata={"Software": None})
