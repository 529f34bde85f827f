"""The README's figure: accuracy against batch size, and the memory of the backward pass."""

import json
import statistics
from collections import defaultdict
from pathlib import Path

_LABELS = {"batchnorm": "batch norm", "layernorm": "layer norm"}
_GREY, _BLUE = "#8a8a8a", "#2a6f97"


def draw_overview(recipes: Path, benchmark: Path, output: Path) -> None:
    """Draw the figure from files of results.

    Args:
        recipes: folder with ``cifar10_resnet20_batch*/results/*.json``, as ``scripts/sweep.py`` writes them.
        benchmark: JSON file of ``scripts/benchmark.py measure``.
        output: PNG file to write.
    """
    import matplotlib  # optional: the extra "plots"

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.2), layout="constrained")
    for arm, by_size in accuracies(recipes).items():
        sizes = sorted(by_size)
        means = [100 * statistics.mean(by_size[size]) for size in sizes]
        spread = [100 * statistics.stdev(by_size[size]) for size in sizes]
        colour = _GREY if arm in _LABELS else _BLUE
        left.errorbar(sizes, means, spread, label=_LABELS.get(arm, arm), color=colour, marker="o", capsize=3)
    left.set_xscale("log", base=2)
    left.set_xticks(sizes, [str(size) for size in sizes])
    left.set(xlabel="batch size", ylabel="top-1, %", title="ResNet-20, one epoch of CIFAR-10")
    left.legend(frameon=False)

    names, ratios = zip(*saved_ratios(benchmark), strict=True)
    right.barh(names, ratios, color=[_GREY if ratio == 1 else _BLUE for ratio in ratios])
    right.bar_label(right.containers[0], fmt="%.2f", padding=3)
    right.set(title="bytes saved for the backward / standard norm", xlim=(0, 1.15))
    right.invert_yaxis()
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(output, dpi=130, metadata={"Software": None})
    plt.close(figure)


def accuracies(recipes: Path) -> dict[str, dict[int, list[float]]]:
    """Arm -> batch size -> top-1 of the final runs, as fractions."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(recipes.glob("cifar10_resnet20_batch*/results/*.json")):
        run = json.loads(file.read_text(encoding="utf-8"))
        if run["is_final"]:
            batch_size = round(run["num_train_images"] * run["epochs"] / run["updates"])
            found[run["arm"]][batch_size].append(run["top1"])
    return found


def saved_ratios(benchmark: Path) -> list[tuple[str, float]]:
    """Model and saved bytes over those of its standard norm, for the standard norms and the divergence-free ones."""
    rows = json.loads(benchmark.read_text(encoding="utf-8"))["rows"]
    shown = {"batchnorm", "layernorm", "patchnorm", "patchnorm_ws", "affinelike"}
    return [
        (f"{row['model'].removesuffix('_patch16_224')}, {_LABELS.get(row['normalizer'], row['normalizer'])}",
         row["saved_ratio"])
        for row in rows
        if row["mode"] == "train" and not row["compiled"] and row["normalizer"] in shown
    ]  # fmt: skip
