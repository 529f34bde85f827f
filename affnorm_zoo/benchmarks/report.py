import json
from pathlib import Path
from typing import Any

from affnorm_zoo.benchmarks.networks import OPAQUE

_PAGE = """# Performance

Every number on this page was written by `scripts/benchmark.py report` from the JSON files in `docs/benchmarks/`,
which `scripts/benchmark.py measure` wrote. Contenders take their steps in turns in one process. A ratio is the
contender's median step over that of the first row of its table, which is timm's own model with its standard norm; the
two numbers behind it are the quartiles of the ratios of single turns, and the last the ratio of the fastest steps.
Where median and minimum disagree, or the quartiles hold 1, the machine was too noisy to tell the contenders apart.
Saved bytes are those of all distinct tensors that autograd keeps for the backward, counted through its hooks,
parameters and buffers aside. An opaque contender's layers are not traced by the compiler but called as in eager mode.

To repeat it:

```bash
python scripts/benchmark.py measure --rounds 12 --output docs/benchmarks/cpu.json
python scripts/benchmark.py measure --dtype bfloat16 --no-compile --rounds 2 --batch-size 4 \\
    --output docs/benchmarks/cpu_bf16.json
python scripts/benchmark.py measure --model resnet50 --opaque --batch-size 4 --output docs/benchmarks/cpu_opaque.json
python scripts/benchmark.py measure --device cuda --model resnet50 --batch-size 256 --dtype bfloat16 \\
    --output docs/benchmarks/gpu.json
python scripts/benchmark.py measure --device cuda --model resnet50 --batch-size 256 --dtype bfloat16 --opaque \\
    --compile-mode max-autotune-no-cudagraphs --output docs/benchmarks/gpu_autotuned.json
python scripts/benchmark.py report
```

The first measurement on a GPU also times the forward of single layers in its two ways, the library's product between
two passes and one kernel with all of it. Eager layers choose between the ways like that, shape by shape, where
`torch.backends.cudnn.benchmark` is set. The last measurement lets the compiler choose, for every 1x1 convolution and
linear layer, between the library's product with a pass behind it and a product of its own; that it puts the
normaliser's factor into the epilogue was not seen yet.
{opaque}
## What was aimed at

{bars}
{sections}"""

# measure, file, filter on a row, column, bar, aim
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
    ("training step, resnet50, bfloat16, batch 256, compiled", "gpu",
     dict(model="resnet50", normalizer="patchnorm", mode="train", compiled=True), "ratio", 1.00, 0.87),
    ("peak training memory, the same", "gpu",
     dict(model="resnet50", normalizer="patchnorm", mode="train", compiled=True), "peak_ratio", 0.60, 0.50),
)  # fmt: skip


def write_report(folder: Path, page: Path) -> None:
    """Write the page of tables, and beside each JSON file a figure of its ratios."""
    results = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}
    sections = []
    for name, result in results.items():
        figure = folder / f"{name}.png"
        if _draw(result["rows"], figure):
            result["figure"] = figure.relative_to(page.parent)
        sections.append(_section(name, result))
    text = _PAGE.format(opaque=_opaque(results), bars=_bars(results), sections="\n".join(sections))
    page.write_text(text, encoding="utf-8")


def _opaque(results: dict[str, Any]) -> str:
    """What was found where the same layers were traced and opaque, a paragraph a measurement."""
    text = ""
    for result in results.values():
        rows = {row["normalizer"]: row for row in result["rows"]}
        for name in [name for name in rows if name + OPAQUE in rows]:
            traced, opaque = rows[name], rows[name + OPAQUE]
            text += (
                f"\nTraced or opaque, on {result['environment']['device']}: a compiled step of\n"
                f"{traced['model']}_{name} takes {traced['ratio']:.2f} or {opaque['ratio']:.2f} of the time with "
                f"{result['rows'][0]['normalizer']}, and keeps {traced['saved_ratio']:.2f} or "
                f"{opaque['saved_ratio']:.2f} of the bytes.\n"
            )
    return text


def _bars(results: dict[str, Any]) -> str:
    lines = ["| measure | where | measured | bar | aim |", "|---|---|---|---|---|"]
    for label, file, wanted, column, bar, aim in _BARS:
        rows = results.get(file, {}).get("rows", [])
        values = [row[column] for row in rows if wanted.items() <= row.items() and column in row]
        measured = f"{values[0]:.3f}" if values else "not measured"
        lines.append(f"| {label} | {file} | {measured} | ≤ {bar:.2f} | {aim:.2f} |")
    fractions = [kernel["of_copy"] for kernel in results.get("gpu", {}).get("kernels", []) if kernel["shape"][0] > 3]
    measured = f"{min(fractions):.2f} to {max(fractions):.2f}" if fractions else "not measured"
    lines.append(f"| fused passes' bandwidth / copy bandwidth | gpu | {measured} | ≥ 0.80 | 0.90 |")
    return "\n".join(lines) + "\n"


def _section(name: str, result: dict[str, Any]) -> str:
    environment = ", ".join(f"{key} {value}" for key, value in result["environment"].items())
    blocks = [f"## {name}\n", f"`{result['command']}`: {environment}.\n"]
    if "figure" in result:
        blocks.append(f"![ratios of {name}]({result['figure']})\n")
    keys = dict.fromkeys((row["model"], row["mode"], row["compiled"], row["precision"]) for row in result["rows"])
    for model, mode, compiled, precision in keys:
        rows = [
            row
            for row in result["rows"]
            if (row["model"], row["mode"], row["compiled"], row["precision"]) == (model, mode, compiled, precision)
        ]
        blocks.append(f"### {model}, {mode}, {'compiled' if compiled else 'eager'}, {precision}\n")
        blocks.append(_table(rows, mode))
    if result.get("products"):
        blocks += ["### one layer's forward, bfloat16\n", _product_table(result["products"])]
    return "\n".join(blocks)


def _product_table(products: list[dict[str, Any]]) -> str:
    lines = ["| pixels | channels in | out | passes (µs) | one kernel (µs) | ratio | tile |", "|---" * 7 + "|"]
    for row in products:
        times = f"{1e6 * row['passes_seconds']:.1f} | {1e6 * row['kernel_seconds']:.1f}"
        ratio = row["kernel_seconds"] / row["passes_seconds"]
        tile = "×".join(map(str, row["tile"][:3]))
        lines.append(f"| {' | '.join(map(str, row['shape']))} | {times} | {ratio:.3f} | {tile} |")
    return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, Any]], mode: str) -> str:
    saved = "saved_mib" in rows[0]
    header = [f"{mode}_step_time (ms)", "min", "max", f"{mode}_samples_per_sec", "n", "ratio", "quartiles", "of minima"]
    header += ["saved (MiB)", "saved ratio"] if saved else []
    header += ["peak (MiB)", "peak ratio"] if "peak_mib" in rows[0] else []
    lines = [f"| norm | {' | '.join(header)} |", "|---" * (len(header) + 1) + "|"]
    for row in rows:
        low, high = row["ratio_quartiles"]
        cells = [
            f"{row[f'{mode}_step_time']:.1f}", f"{row['step_time_min']:.1f}", f"{row['step_time_max']:.1f}",
            f"{row[f'{mode}_samples_per_sec']:.2f}", str(row["n"]), f"{row['ratio']:.3f}", f"{low:.2f} to {high:.2f}",
            f"{row['ratio_of_minima']:.3f}",
        ]  # fmt: skip
        cells += [f"{row['saved_mib']:.1f}", f"{row['saved_ratio']:.3f}"] if saved else []
        cells += [f"{row['peak_mib']:.0f}", f"{row['peak_ratio']:.3f}"] if "peak_mib" in row else []
        lines.append(f"| {row['normalizer']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _draw(rows: list[dict[str, Any]], path: Path) -> bool:
    """Bars of the ratios: step time of training on the left, saved bytes on the right. Whether there are any."""
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
