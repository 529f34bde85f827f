import json
from pathlib import Path
from typing import Any

from affnorm_zoo.benchmarks.gpu_report import NOT_MEASURED, gpu_section, gpu_summary, gpu_targets, read_steps
from affnorm_zoo.benchmarks.networks import OPAQUE
from affnorm_zoo.benchmarks.tables import network_table, table

_BEGIN, _END = "<!-- gpu: scripts/benchmark.py report -->\n", "<!-- end of gpu -->\n"

_PAGE = """# Performance

`scripts/benchmark.py report` writes every number on this page from the JSON files in `docs/benchmarks/`.
`scripts/benchmark.py measure` writes these files.

- All models of a table run in one process and take turns.
- **ratio** is the model's median step time over that of the table's first row. The first row is timm's own model with
  its standard norm.
- **quartiles** are those of the ratios of single turns. **of minima** is the ratio of the fastest steps.
- If median and minimum disagree, or 1 lies between the quartiles, timing noise hides any difference.
- **saved** counts the bytes of all distinct tensors that autograd keeps for the backward pass, without parameters and
  buffers. Autograd's hooks count them.
- The compiler does not trace the layers of an **opaque** model; it calls them as in eager mode.

To repeat it:

```bash
python scripts/benchmark.py measure --rounds 12 --output docs/benchmarks/cpu.json
python scripts/benchmark.py measure --precision bfloat16 --no-compile --rounds 2 --batch-size 4 \\
    --output docs/benchmarks/cpu_bf16.json
python scripts/benchmark.py measure --model resnet50 --opaque --batch-size 4 --output docs/benchmarks/cpu_opaque.json
python scripts/gpu_evidence.py  # on a GPU, into docs/benchmarks/gpu
python scripts/benchmark.py report
```

{opaque}
## Targets

{bars}
## GPU

{gpu}
{sections}"""

# measure, file, filter on a row, column, required value, target
_BARS: tuple[tuple[str, str, dict[str, Any], str, float, float], ...] = (
    ("saved bytes, resnet50_patchnorm / resnet50", "cpu",
     dict(model="resnet50", normalizer="patchnorm", mode="train", compiled=False), "saved_ratio", 0.50, 0.45),
    ("the same, bfloat16", "cpu_bf16",
     dict(model="resnet50", normalizer="patchnorm", mode="train", compiled=False), "saved_ratio", 0.50, 0.45),
    ("the same, compiled", "cpu",
     dict(model="resnet50", normalizer="patchnorm", mode="train", compiled=True), "saved_ratio", 0.50, 0.45),
    ("saved bytes, resnet18_patchnorm / resnet18", "cpu",
     dict(model="resnet18", normalizer="patchnorm", mode="train", compiled=False), "saved_ratio", 0.60, 0.50),
    ("saved bytes, vit_small affinelike / layernorm", "cpu",
     dict(model="vit_small_patch16_224", normalizer="affinelike", mode="train", compiled=False),
     "saved_ratio", 0.85, 0.75),
    ("the same, compiled", "cpu",
     dict(model="vit_small_patch16_224", normalizer="affinelike", mode="train", compiled=True),
     "saved_ratio", 0.85, 0.75),
    ("training step, resnet50_patchnorm / resnet50, eager", "cpu",
     dict(model="resnet50", normalizer="patchnorm", mode="train", compiled=False), "ratio", 1.05, 0.95),
    ("the same, compiled", "cpu",
     dict(model="resnet50", normalizer="patchnorm", mode="train", compiled=True), "ratio", 1.05, 0.95),
    ("inference, resnet50_patchnorm / batch norm folded, compiled", "cpu",
     dict(model="resnet50", normalizer="patchnorm", mode="infer", compiled=True), "ratio", 1.15, 1.05),
)  # fmt: skip


def write_report(folder: Path, page: Path, readme: Path | None = None) -> None:
    """Write the page, one figure of ratios next to each JSON file, and the README's lines on the GPU."""
    results = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}
    files = read_steps(folder / "gpu")
    note = (folder / "gpu/note.txt").read_text(encoding="utf-8") if (folder / "gpu/note.txt").is_file() else ""
    sections = []
    for name, result in results.items():
        figure = folder / f"{name}.png"
        if _draw(result["rows"], figure):
            result["figure"] = figure.relative_to(page.parent)
        sections.append(_section(name, result))
    text = _PAGE.format(
        opaque=_opaque(results),
        bars=_bars(results, gpu_targets(files)),
        gpu=gpu_section(files, note),
        sections="\n".join(sections),
    )
    page.write_text(text, encoding="utf-8")
    if readme is not None:
        before, _, rest = readme.read_text(encoding="utf-8").partition(_BEGIN)
        _, _, after = rest.partition(_END)
        readme.write_text(before + _BEGIN + gpu_summary(files, note) + _END + after, encoding="utf-8")


def _opaque(results: dict[str, Any]) -> str:
    """One paragraph per measurement that has the same layers both traced and opaque."""
    text = ""
    for result in results.values():
        rows = {row["normalizer"]: row for row in result["rows"]}
        for name in [name for name in rows if name + OPAQUE in rows]:
            traced, opaque = rows[name], rows[name + OPAQUE]
            text += (
                f"\nOn {result['environment']['device']}, a compiled step of {traced['model']}_{name} takes "
                f"{traced['ratio']:.2f}x\nas long as with {result['rows'][0]['normalizer']} and keeps "
                f"{traced['saved_ratio']:.2f}x the bytes. With opaque layers it takes {opaque['ratio']:.2f}x as long "
                f"and\nkeeps {opaque['saved_ratio']:.2f}x the bytes.\n"
            )
    return text


def _bars(results: dict[str, Any], gpu: list[list[str]]) -> str:
    lines = []
    for label, file, wanted, column, bar, target in _BARS:
        rows = results.get(file, {}).get("rows", [])
        values = [row[column] for row in rows if wanted.items() <= row.items() and column in row]
        measured = f"{values[0]:.3f}" if values else NOT_MEASURED
        lines.append([label, file, measured, f"≤ {bar:.2f}", f"{target:.2f}"])
    return table(["measure", "file", "measured", "required", "target"], [*lines, *gpu])


def _section(name: str, result: dict[str, Any]) -> str:
    environment = ", ".join(f"{key} {value}" for key, value in result["environment"].items())
    blocks = [f"## {name}\n", f"`{result['command']}`: {environment}.\n"]
    if "figure" in result:
        blocks.append(f"![ratios of {name}]({result['figure']})\n")
    kinds = dict.fromkeys(map(_kind, result["rows"]))
    for kind in kinds:
        model, mode, compiled, precision = kind
        blocks.append(f"### {model}, {mode}, {'compiled' if compiled else 'eager'}, {precision}\n")
        blocks.append(network_table([row for row in result["rows"] if _kind(row) == kind]))
    return "\n".join(blocks)


def _kind(row: dict[str, Any]) -> tuple[str, str, bool, str]:
    return row["model"], row["mode"], row["compiled"], row["precision"]


def _draw(rows: list[dict[str, Any]], path: Path) -> bool:
    """Draw bars of the ratios: training step on the left, saved bytes on the right.

    Returns:
        Whether there was anything to draw.
    """
    chosen = [row for row in rows if row["mode"] == "train" and not row["compiled"]]
    if not chosen:
        return False
    import matplotlib  # optional: the extra "plots"

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    labels = [f"{row['model'].removesuffix('_patch16_224')}\n{row['normalizer']}" for row in chosen]
    figure, axes = plt.subplots(1, 2, figsize=(12, 0.42 * len(chosen) + 1.4), sharey=True, layout="constrained")
    titles = {
        "ratio": "training step, eager: time / standard norm",
        "saved_ratio": "bytes saved for the backward / standard norm",
    }
    for axis, (column, title) in zip(axes, titles.items(), strict=True):
        values = [row[column] for row in chosen]
        colours = ["#b0b0b0" if row["normalizer"] in ("batchnorm", "layernorm") else "#2a6f97" for row in chosen]
        bars = axis.barh(labels, values, color=colours)
        axis.bar_label(bars, fmt="%.2f", padding=3)
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_xlim(0, 1.2 * max(values))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True
