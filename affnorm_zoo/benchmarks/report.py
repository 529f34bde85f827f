import json
from pathlib import Path
from typing import Any

from affnorm_zoo.benchmarks.gpu_report import NOT_MEASURED, gpu_section, gpu_summary, gpu_targets, read_steps
from affnorm_zoo.benchmarks.networks import OPAQUE
from affnorm_zoo.benchmarks.tables import network_table, table

_BEGIN, _END = "<!-- gpu: scripts/benchmark.py report -->\n", "<!-- end of gpu -->\n"

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
python scripts/benchmark.py measure --precision bfloat16 --no-compile --rounds 2 --batch-size 4 \\
    --output docs/benchmarks/cpu_bf16.json
python scripts/benchmark.py measure --model resnet50 --opaque --batch-size 4 --output docs/benchmarks/cpu_opaque.json
python scripts/gpu_evidence.py  # on a GPU, into docs/benchmarks/gpu
python scripts/benchmark.py report
```

On a GPU, where `torch.backends.cudnn.benchmark` is set, eager layers in half precision choose shape by shape, by
timing both, between the library's product with passes around it and one kernel with all of it.
{opaque}
## Targets

{bars}
## GPU

{gpu}
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
)  # fmt: skip


def write_report(folder: Path, page: Path, readme: Path | None = None) -> None:
    """Write the page of tables, beside each JSON file a figure of its ratios, and the README's lines on the GPU."""
    results = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}
    files = read_steps(folder / "gpu")
    sections = []
    for name, result in results.items():
        figure = folder / f"{name}.png"
        if _draw(result["rows"], figure):
            result["figure"] = figure.relative_to(page.parent)
        sections.append(_section(name, result))
    text = _PAGE.format(
        opaque=_opaque(results),
        bars=_bars(results, gpu_targets(files)),
        gpu=gpu_section(files),
        sections="\n".join(sections),
    )
    page.write_text(text, encoding="utf-8")
    if readme is not None:
        before, _, rest = readme.read_text(encoding="utf-8").partition(_BEGIN)
        _, _, after = rest.partition(_END)
        readme.write_text(before + _BEGIN + gpu_summary(files) + _END + after, encoding="utf-8")


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


def _bars(results: dict[str, Any], gpu: list[list[str]]) -> str:
    lines = []
    for label, file, wanted, column, bar, aim in _BARS:
        rows = results.get(file, {}).get("rows", [])
        values = [row[column] for row in rows if wanted.items() <= row.items() and column in row]
        measured = f"{values[0]:.3f}" if values else NOT_MEASURED
        lines.append([label, file, measured, f"≤ {bar:.2f}", f"{aim:.2f}"])
    return table(["measure", "where", "measured", "bar", "aim"], [*lines, *gpu])


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
