import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from affnorm_zoo.benchmarks.bars import cpu_bars
from affnorm_zoo.benchmarks.gpu_report import gpu_bars, gpu_section, gpu_summary, read_steps
from affnorm_zoo.benchmarks.networks import OPAQUE
from affnorm_zoo.benchmarks.tables import VERDICTS, Bar, network_table, table
from affnorm_zoo.studies.forest import Effect, draw_forest

_BEGIN, _END = "<!-- gpu: scripts/benchmark.py report -->\n", "<!-- end of gpu -->\n"

_PAGE = """# Performance

`scripts/benchmark.py report` writes every number on this page from the JSON files in `docs/benchmarks/`.

## Verdict

{verdict}
{figure}
{bars}
## How it was measured

- All models of a table take turns.
- With `--processes`, the turns are split over that many processes, one after the other, so that what is peculiar to one
  process does not decide. Each file holds the time of every turn.
- **ratio** is the model's median step time over that of the table's first row. The first row is timm's own model with
  its standard norm.
- **quartiles** are those of the ratios of single turns. **of minima** is the ratio of the fastest steps. **n** is the
  number of turns.
- If median and minimum disagree, or 1 lies between the quartiles, timing noise hides any difference.
- **saved** counts the bytes of all distinct tensors that autograd keeps for the backward pass, without parameters and
  buffers. Autograd's hooks count them.
- `ONEDNN_MAX_CPU_ISA=AVX512_CORE` keeps the library's convolutions from the processor's bfloat16 instructions, as on a
  processor that has none.
- The compiler does not trace the layers of an **opaque** model; it calls them as in eager mode.

To repeat it:

```bash
python scripts/benchmark.py measure --rounds 12 --processes 4 --output docs/benchmarks/cpu.json
python scripts/benchmark.py measure --precision bfloat16 --no-compile --rounds 12 --processes 4 \\
    --output docs/benchmarks/cpu_bf16.json
ONEDNN_MAX_CPU_ISA=AVX512_CORE python scripts/benchmark.py measure --model resnet50 --precision bfloat16 --no-compile \\
    --rounds 12 --processes 4 --output docs/benchmarks/cpu_bf16_emulated.json
python scripts/benchmark.py measure --model resnet18 --batch-size 32 --no-compile --rounds 12 \\
    --output docs/benchmarks/cpu_batch32.json
python scripts/benchmark.py measure --model resnet50 --batch-size 16 --no-compile --rounds 12 \\
    --output docs/benchmarks/cpu_batch16.json
python scripts/benchmark.py measure --model conv3x3 --model conv1x1 --batch-size 2 --rounds 200 \\
    --output docs/benchmarks/host.json
python scripts/benchmark.py measure --families --rounds 4 --batch-size 4 --output docs/benchmarks/families.json
python scripts/benchmark.py measure --model resnet50 --opaque --batch-size 4 --output docs/benchmarks/cpu_opaque.json
python scripts/gpu_evidence.py  # on a GPU, into docs/benchmarks/gpu
python scripts/benchmark.py report
```

## GPU

{gpu}
{sections}"""

_MAIN = "cpu"  # the file whose figure leads the page
_STANDARD = ("batchnorm", "layernorm")
_COLOURS = {"bytes saved for the backward": "#2a6f97", "time of a training step, with quartiles": "#c1666b"}


def write_report(folder: Path, page: Path, readme: Path | None = None) -> None:
    """Write the page, one figure of ratios next to each JSON file, and the README's lines on the GPU."""
    results = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}
    files = read_steps(folder / "gpu")
    note = (folder / "gpu/note.txt").read_text(encoding="utf-8") if (folder / "gpu/note.txt").is_file() else ""
    figures = {}
    for name, result in results.items():
        if _draw(result["rows"], folder / f"{name}.png"):
            figures[name] = f"![ratios of {name}]({(folder / f'{name}.png').relative_to(page.parent)})\n"
    bars = [*cpu_bars(results), *gpu_bars(files)]
    text = _PAGE.format(
        verdict=_verdict(results, bars, note),
        figure=figures.pop(_MAIN, ""),
        bars=table(["measure", "file", "measured", "required", "target", "verdict"], [bar.cells() for bar in bars]),
        gpu=gpu_section(files, note),
        sections="\n".join(_section(name, result, figures.get(name)) for name, result in results.items()),
    )
    page.write_text(text, encoding="utf-8")
    if readme is not None:
        before, _, rest = readme.read_text(encoding="utf-8").partition(_BEGIN)
        _, _, after = rest.partition(_END)
        readme.write_text(before + _BEGIN + gpu_summary(files, note) + _END + after, encoding="utf-8")


def _verdict(results: dict[str, Any], bars: list[Bar], note: str) -> str:
    """What was reached, as a list."""
    counts = Counter(bar.verdict for bar in bars)
    lines = ["Requirements: " + ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS) + "."]
    for row in _eager_steps(results.get(_MAIN, {"rows": []})["rows"]):
        if row["normalizer"] in ("patchnorm", "affinelike"):
            low, high = row["ratio_quartiles"]
            lines.append(
                f"{row['model']}_{row['normalizer']} keeps {row['saved_ratio']:.2f} of the standard norm's bytes. A "
                f"training step on a CPU takes {row['ratio']:.2f} times as long (quartiles {low:.2f} to {high:.2f})."
            )
    lines += _opaque(results)
    if note:
        lines.append("The code has changed since the GPU's measurements: see [GPU](#gpu).")
    return "".join(f"- {line}\n" for line in lines)


def _opaque(results: dict[str, Any]) -> Iterator[str]:
    """One line per measurement that has the same layers both traced and opaque."""
    for result in results.values():
        rows = {row["normalizer"]: row for row in result["rows"]}
        for name in [name for name in rows if name + OPAQUE in rows]:
            traced, opaque = rows[name], rows[name + OPAQUE]
            yield (
                f"On {result['environment']['device']}, a compiled step of {traced['model']}_{name} takes "
                f"{traced['ratio']:.2f} times as long as with {result['rows'][0]['normalizer']} and keeps "
                f"{traced['saved_ratio']:.2f} of the bytes. With opaque layers it takes {opaque['ratio']:.2f} times "
                f"as long and keeps {opaque['saved_ratio']:.2f} of the bytes."
            )


def _section(name: str, result: dict[str, Any], figure: str | None) -> str:
    environment = ", ".join(f"{key} {value}" for key, value in result["environment"].items())
    blocks = [f"## {name}\n", f"`{result['command']}`: {environment}.\n", *([figure] if figure else [])]
    kinds = dict.fromkeys(map(_kind, result["rows"]))
    for kind in kinds:
        model, mode, compiled, precision = kind
        blocks.append(f"### {model}, {mode}, {'compiled' if compiled else 'eager'}, {precision}\n")
        blocks.append(network_table([row for row in result["rows"] if _kind(row) == kind]))
    return "\n".join(blocks)


def _kind(row: dict[str, Any]) -> tuple[str, str, bool, str]:
    return row["model"], row["mode"], row["compiled"], row["precision"]


def _eager_steps(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["mode"] == "train" and not row["compiled"]]


def _draw(rows: list[dict[str, Any]], path: Path) -> bool:
    """Draw step times and saved bytes of eager training over those of the standard norm.

    Returns:
        Whether there was anything to draw.
    """
    groups = defaultdict(list)
    saved, time = _COLOURS
    for row in _eager_steps(rows):
        if row["normalizer"] not in _STANDARD:
            name, bytes_ratio = row["normalizer"], row["saved_ratio"]
            groups[row["model"]].append(Effect(name, bytes_ratio, bytes_ratio, bytes_ratio, saved))
            low, high = row["ratio_quartiles"]
            # few turns: the ratio of medians may lie outside the quartiles of single turns' ratios
            low, high = min(low, row["ratio"]), max(high, row["ratio"])
            groups[row["model"]].append(Effect(name, row["ratio"], low, high, time))
    if groups:
        draw_forest(groups, _COLOURS, path, "over timm's network with its standard norm, eager", none=1.0)
    return bool(groups)
