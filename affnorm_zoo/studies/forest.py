"""Forest plots: estimates with their intervals, one below the other."""

from dataclasses import dataclass
from pathlib import Path

from affnorm_zoo.evidence.statistics import Estimate

_ROW = 0.19  # inches


@dataclass(frozen=True)
class Effect:
    """A point with its interval. Consecutive effects of a group with the same label share a line.

    Args:
        label: what was estimated.
        value: the estimate.
        low, high: ends of the interval.
        kind: its entry in the legend, a key of the plot's colours.
    """

    label: str
    value: float
    low: float
    high: float
    kind: str

    @classmethod
    def of(cls, label: str, estimate: Estimate, kind: str) -> "Effect":
        """An estimate with its 95 % interval."""
        return cls(label, estimate.value, estimate.low, estimate.high, kind)


def draw_forest(
    groups: dict[str, list[Effect]], colours: dict[str, str], target: Path, x: str, none: float = 0.0
) -> None:
    """Draw effects with their intervals into a PNG file.

    Args:
        groups: heading -> its lines. Groups without lines are left out.
        colours: kind -> colour, in the order of the legend.
        target: the PNG file.
        x: what the axis shows.
        none: the value of no effect.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.figure import Figure

    groups = {heading: effects for heading, effects in groups.items() if effects}
    rows = sum(len({effect.label for effect in effects}) + 1 for effects in groups.values())
    figure = Figure(figsize=(8.5, _ROW * rows + 1.1), layout="constrained")
    axes = figure.subplots()
    axes.axvline(none, color="#999999", lw=0.8)
    ticks, used = [], set()
    for heading, effects in groups.items():
        ticks.append(heading)
        for effect in effects:
            if ticks[-1] != effect.label:
                ticks.append(effect.label)
            label = "" if effect.kind in used else effect.kind
            margins = [[effect.value - effect.low], [effect.high - effect.value]]
            axes.errorbar(
                effect.value, len(ticks) - 1, xerr=margins, marker="o", ms=4, lw=1.3, color=colours[effect.kind],
                label=label,
            )  # fmt: skip
            used.add(effect.kind)
    axes.set_yticks(range(len(ticks)), ticks, fontsize=8)
    for text in axes.get_yticklabels():
        text.set_fontweight("bold" if text.get_text() in groups else "normal")
    axes.set_ylim(len(ticks) - 0.3, -0.7)
    axes.set_xlabel(x, fontsize=9)
    handles = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    shown = [kind for kind in colours if kind in handles]
    axes.legend(
        [handles[kind] for kind in shown], shown, fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1),
        ncols=len(shown),
    )  # fmt: skip
    axes.grid(axis="x", alpha=0.25)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(target, format="png", dpi=100, metadata={"Software": None})
