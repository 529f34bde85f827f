"""Write the GPU's part of the performance page, and the README's lines on it, from the results of gpu-evidence."""

from pathlib import Path
from typing import Any

from affnorm_zoo.benchmarks.gpu_evidence.record import is_failed
from affnorm_zoo.benchmarks.gpu_evidence.steps import STEPS
from affnorm_zoo.benchmarks.tables import Bar, network_table, table
from affnorm_zoo.runs.files import read_json

Files = dict[str, dict[str, Any]]


def read_steps(folder: Path) -> Files:
    """The existing result files by step, in the order of the steps."""
    files = {step.name: read_json(folder / f"{step.name}.json") for step in STEPS}
    return {name: content for name, content in files.items() if content}


def results_of(files: Files, step: str, row: str) -> Any:
    """The results of a row; None if the row is missing or failed."""
    return files.get(step, {}).get("rows", {}).get(row, {}).get("results")


def gpu_bars(files: Files) -> list[Bar]:
    """What is required of a GPU, and what was measured."""
    compiled = results_of(files, "resnet50", "train amp_bfloat16 compiled")
    speed, peak = (1 / compiled[1]["ratio"], compiled[1]["peak_ratio"]) if compiled else (None, None)
    lowest = min((row["of_copy"] for rows in _all_results(files, "kernel_speed") for row in rows), default=None)
    images = "images per second, resnet50_patchnorm / resnet50, mixed precision, batch 256, compiled"
    return [
        Bar(images, "gpu", speed, 1.05, 1.15, at_least=True),
        Bar("peak training memory, the same", "gpu", peak, 0.60, 0.50),
        Bar("bandwidth of the passes / of a copy, lowest", "gpu", lowest, 0.80, 0.90, at_least=True),
    ]


def gpu_summary(files: Files, note: str) -> str:
    """A sentence for the README, and one more if there is a note."""
    compiled = results_of(files, "resnet50", "train amp_bfloat16 compiled")
    if not compiled:
        return "On a GPU: not measured yet. `python scripts/gpu_evidence.py` makes the measurements.\n"
    ours, device = compiled[1], files["resnet50"]["environment"]["device"]
    return (
        f"On one {device}, `resnet50_patchnorm` trains {1 / ours['ratio']:.2f} times as many images per second\n"
        f"as batch norm, with {ours['peak_ratio']:.2f} of the peak memory (batch {ours['train_batch_size']}, bfloat16\n"
        "mixed precision, compiled)."
        + (" The code has changed since: see [performance](docs/performance.md#gpu).\n" if note else "\n")
    )


def gpu_section(files: Files, note: str) -> str:
    """The page's section on the GPU; ``note`` says what has changed since the measurements."""
    if not files:
        return "Not measured: no GPU has run `scripts/gpu_evidence.py` yet.\n"
    devices = sorted({_describe(content["environment"]) for content in files.values() if "environment" in content})
    blocks = ["\n".join(devices) + "\n", *([note] if note else []), _steps_table(files)]
    for step, title in (("ceilings", "Ceilings"), ("kernel_check", "Kernels against float64")):
        if step in files:
            blocks += [f"### {title}\n", (_ceilings if step == "ceilings" else _kernel_errors)(files[step])]
    for step in files:
        rows = [row for found in _all_results(files, step) for row in found] if _is_network(files, step) else []
        for key in dict.fromkeys(_kind(row) for row in rows):
            blocks += [f"### {', '.join(key)}\n", network_table([row for row in rows if _kind(row) == key])]
    if "kernel_speed" in files:
        blocks += ["### Bandwidth of the passes over that of a copy\n", _bandwidths(files)]
    if any(step.startswith("train_") for step in files):
        blocks.append("[recipes.md](recipes.md) has the accuracies of the networks trained.\n")
    return "\n".join(blocks)


def _describe(environment: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in environment.items())


def _all_results(files: Files, step: str) -> list[Any]:
    rows = files.get(step, {}).get("rows", {}).values()
    return [row["results"] for row in rows if "results" in row]


def _is_network(files: Files, step: str) -> bool:
    return any(name.startswith(("train ", "infer ")) for name in files[step].get("rows", {}))


def _kind(row: dict[str, Any]) -> tuple[str, ...]:
    compiled = f"compiled ({row['compile_mode']})" if "compile_mode" in row else "compiled"
    return row["model"], row["mode"], compiled if row["compiled"] else "eager", row["precision"]


def _steps_table(files: Files) -> str:
    rows = []
    for name, content in files.items():
        failed = [
            f"{row}: {found.get('error', 'not ok')}" for row, found in content["rows"].items() if is_failed(found)
        ]
        remark = "; ".join(filter(None, [content.get("error"), *failed]))
        rows.append([name, content["status"], f"{content.get('seconds', 0):.0f}", remark])
    return table(["step", "status", "seconds", "what failed"], rows)


def _ceilings(content: dict[str, Any]) -> str:
    units = {"gb_per_second": "GB/s", "tflop_per_second": "TFLOP/s"}
    found = [(name, *row["results"].items()) for name, row in content["rows"].items() if "results" in row]
    return table(["what", "reached"], [[name, f"{value:.0f} {units[unit]}"] for name, (unit, value) in found])


def _kernel_errors(content: dict[str, Any]) -> str:
    checked = [(name, row) for name, found in content["rows"].items() for row in found.get("results", ())]
    wrong = [(name, row) for name, row in checked if not row["ok"]]
    text = f"{len(checked) - len(wrong)} of {len(checked)} checks are within their limit.\n"
    if not wrong:
        return text
    lines = [[row["kernel"], name, f"{row['error']:.3g}", f"{row['limit']:.3g}"] for name, row in wrong]
    return text + "\n" + table(["kernel", "images", "error", "limit"], lines)


def _bandwidths(files: Files) -> str:
    found = {name: row["results"] for name, row in files["kernel_speed"]["rows"].items() if "results" in row}
    kernels = list(dict.fromkeys(row["kernel"] for rows in found.values() for row in rows))
    lines = [
        [name, f"{rows[0]['copy_gb_per_second']:.0f}", *(f"{row['of_copy']:.2f}" for row in rows)]
        for name, rows in found.items()
    ]
    return table(["images", "copy (GB/s)", *kernels], lines)
