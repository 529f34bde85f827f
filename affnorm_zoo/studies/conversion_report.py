"""The table of docs/conversion.md."""

from pathlib import Path
from typing import Any

from affnorm_zoo.evidence.statistics import Sample
from affnorm_zoo.runs.files import read_json
from affnorm_zoo.studies.conversion import FINE_TUNED, FINE_TUNED_IMAGES, ONE_SHOT

BEGIN, END = "<!-- conversion: scripts/conversion.py report -->\n", "<!-- end of conversion -->\n"
# what is compared: (scale, fit or way of fine-tuning) -> largest loss of top-1, in points: allowed and targeted
TARGETS = {("rms4", "channel"): (0.6, 0.3), ("rms", "lstsq"): (1.9, 0.7), ("rms", "labels"): (0.9, 0.3),
           ("rms", "distilled"): (0.9, 0.3)}  # fmt: skip
_KAPPA = {"rms": "√n", "rms4": "4√n", "rms10": "10√n"}


def write_page(results: Path, page: Path) -> None:
    """Replace the page's tables by those of the results."""
    text = page.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    page.write_text(before + BEGIN + tables(read_json(results)) + END + after, encoding="utf-8")


def tables(results: dict[str, Any]) -> str:
    """What was measured, with what, in Markdown; empty results say so."""
    if not results:
        return "Not measured yet.\n"
    rows, environment = results["rows"], results["environment"]
    source = next(row["top1"] for row in rows if row["kind"] == "source")
    lines = [
        f"`{results['source']}` has {100 * source:.2f} % of the {results['num_test']:,} test images of "
        f"{results['data']}. A conversion reads {results['num_images']} training images, without labels. ± is the "
        "standard deviation over conversions with other images.",
        "",
        "| κ | how | top-1, % | n | points lost | output error | mean share | allowed loss, target |",
        "|---" * 8 + "|",
    ]
    for scale, fit in ONE_SHOT:
        found = [row for row in rows if (row.get("scale"), row.get("fit")) == (scale, fit)]
        lines.append(_line(scale, f'one shot, `fit="{fit}"`', found, source, TARGETS.get((scale, fit))))
    for how in FINE_TUNED:
        found = [row for row in rows if row.get("how") == how]
        text = f"then {FINE_TUNED_IMAGES:,} images, {'with labels' if how == 'labels' else 'distilled, no labels'}"
        lines.append(_line("rms", text, found, source, TARGETS["rms", how]))
    packages = {name: value for name, value in environment.items() if name not in ("device", "cpu_count")}
    versions = ", ".join(f"{name} {value}" for name, value in packages.items())
    return "\n".join([*lines, "", f"Measured on {environment['device']} with {versions}.", ""])


def _line(scale: str, how: str, rows: list[dict[str, Any]], source: float, target: tuple[float, float] | None) -> str:
    cells = [_KAPPA[scale], how]
    if not rows:
        return f"| {' | '.join(cells)} | not measured | 0 | | | | {_target(target)} |"
    sample = Sample(tuple(row["top1"] for row in rows))
    deviation = f" ± {100 * sample.std:.2f}" if len(rows) > 1 else ""
    cells += [f"{100 * sample.mean:.2f}{deviation}", str(len(rows)), f"{100 * (source - sample.mean):.2f}"]
    for key in ("logit_error", "mean_share"):
        values = [row[key] for row in rows if key in row]
        cells.append(f"{sum(values) / len(values):.3f}" if values else "")
    return f"| {' | '.join(cells)} | {_target(target)} |"


def _target(target: tuple[float, float] | None) -> str:
    return "" if target is None else f"{target[0]}, {target[1]}"
