"""Write the page of the conversion of EfficientNet-Lite0 from its results."""

from pathlib import Path
from typing import Any

from affnorm_zoo.runs.files import read_json, write_text
from affnorm_zoo.studies.lite0 import PACKAGE
from affnorm_zoo.studies.lite0_study import SOURCE, Lite0Config

BAR = -1.5  # points among ten, one-shot at κ = 4√n
_BAR_KAPPA = 4
_TUNED = """\
- Fine-tuned: {updates} updates of AdamW on {batch} training images each, without labels, to the source's probabilities.
  Every image is seen once, as a random crop of {crop} px. We tried one learning rate, {rate:g}.
- The training images show the ten classes alone, as the validation images do. Fine-tuning comes to prefer these, which
  raises *of 1,000* above the source.
"""
_PAGE = """\
# Converting ImageNet weights: EfficientNet-Lite0 to PatchNorm

`scripts/study.py report` writes this page from [{file}]({file}).
The weights are those of the package `{package}` (Apache-2.0), trained with batch
norm on ImageNet. The images are {num_test:,} validation images of Imagenette, ten of ImageNet's classes, enlarged from
128 px and evaluated at {size} px. The twin is the converted network.

{verdict}

{table}
- *Of 1,000*: the image's class has the highest of all logits. *Among ten*: the highest of the ten classes' logits.
  *Same class*: share of the images for which twin and source choose the same of 1,000 classes.
- One-shot: `affnorm_zoo.convert` on {num_fit} training images, without labels and without training.
{tuned}{cost}
To repeat it: `python scripts/study.py lite0 IMAGENETTE`. Hardware and versions: {environment}; {threads} thread.
"""


def write_lite0(config: Lite0Config, results: Path, page: Path) -> None:
    """Write the page."""
    result = read_json(results)
    text = _PAGE.format(
        file=results.relative_to(page.parent).as_posix(),
        package=PACKAGE,
        num_test=result["num_test"],
        size=config.image_size,
        verdict=_verdict(result["rows"]),
        table=_table(result["rows"]),
        num_fit=config.num_fit,
        tuned=_tuned(result["rows"], config),
        cost=_cost(result["cost"], config),
        environment=", ".join(f"{name} {value}" for name, value in result["environment"].items()),
        threads=result["threads"],
    )
    write_text(page, text)


def _verdict(rows: list[dict[str, Any]]) -> str:
    source = next(row for row in rows if row["network"] == SOURCE)
    twin = next((row for row in rows if row.get("kappa") == _BAR_KAPPA and row["updates"] == 0), None)
    if twin is None:
        return f"κ = {_BAR_KAPPA}√n, one-shot: not run."
    loss = 100 * (twin["among_ten"] - source["among_ten"])
    return (
        f"One-shot at κ = {_BAR_KAPPA}√n, the twin is {loss:+.1f} points from the source among ten. The target was at "
        f"least {BAR:g}: {'met' if loss >= BAR else 'missed'}."
    )


def _tuned(rows: list[dict[str, Any]], config: Lite0Config) -> str:
    if not any(row.get("updates") for row in rows):
        return "- Fine-tuning has not run yet.\n"
    updates = -(-config.num_seen // config.batch_size)
    return _TUNED.format(updates=updates, batch=config.batch_size, crop=config.crop, rate=config.rate)


def _table(rows: list[dict[str, Any]]) -> str:
    lines = ["| network | κ | | of 1,000, % | among ten, % | same class, % |", "|---|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: (row.get("kappa", 0), row.get("updates", 0))):
        if row["network"] == SOURCE:
            middle, same = "| batchnorm, the source | | |", ""
        else:
            how = "fine-tuned" if row["updates"] else "one-shot"
            kappa = f"{row['kappa']:g}√n" if row["kappa"] != 1 else "√n"
            middle, same = f"| patchnorm | {kappa} | {how} |", f"{100 * row['agreement']:.1f}"
        lines.append(f"{middle} {100 * row['of_1000']:.1f} | {100 * row['among_ten']:.1f} | {same} |")
    return "\n".join(lines) + "\n"


def _cost(cost: list[dict[str, Any]], config: Lite0Config) -> str:
    if not cost:
        return ""
    twin, source = cost[-1], cost[0]
    low, high = twin["step_ratio_quartiles"]
    return (
        f"- The twin saves {twin['saved_mib']:.0f} MiB for the backward at batch size {config.batch_size}, the source "
        f"{source['saved_mib']:.0f}: {twin['saved_ratio']:.2f}x.\n"
        f"- Forward and backward take {twin['step_ratio']:.2f}x as long as the source's (quartiles {low:.2f} to "
        f"{high:.2f}; steps alternate, eager, on a machine that was busy with other work).\n"
    )
