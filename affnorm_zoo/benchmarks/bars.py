"""What a CPU must show, and what was measured."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from affnorm_zoo.benchmarks.tables import Bar


class _Wanted(NamedTuple):
    """A number of one row of a file, required and aimed at; with ``over``, as a multiple of that row's number."""

    label: str
    file: str
    model: str
    normalizer: str
    column: str
    required: float
    target: float
    mode: str = "train"
    compiled: bool = False
    over: str | None = None


_R50, _R18, _VIT = "resnet50", "resnet18", "vit_small_patch16_224"
_WANTED = (
    _Wanted("saved bytes, resnet50_patchnorm / resnet50", "cpu", _R50, "patchnorm", "saved_ratio", 0.48, 0.45),
    _Wanted("the same, patchnorm_ws", "cpu", _R50, "patchnorm_ws", "saved_ratio", 0.49, 0.45),
    _Wanted("the same, bfloat16", "cpu_bf16", _R50, "patchnorm", "saved_ratio", 0.50, 0.45),
    _Wanted("the same, compiled", "cpu", _R50, "patchnorm", "saved_ratio", 0.50, 0.45, compiled=True),
    _Wanted("saved bytes, resnet18_patchnorm / resnet18", "cpu", _R18, "patchnorm", "saved_ratio", 0.56, 0.50),
    _Wanted("the same, patchnorm_ws", "cpu", _R18, "patchnorm_ws", "saved_ratio", 0.57, 0.50),
    _Wanted("saved bytes, vit_small affinelike / layernorm", "cpu", _VIT, "affinelike", "saved_ratio", 0.85, 0.75),
    _Wanted("the same, compiled", "cpu", _VIT, "affinelike", "saved_ratio", 0.85, 0.75, compiled=True),
    _Wanted("the same, recomputed attention", "cpu", _VIT, "affinelike, recomputed attention", "saved_ratio", 0.60,
            0.55),
    _Wanted("training step, resnet50_patchnorm / resnet50", "cpu", _R50, "patchnorm", "ratio", 1.02, 0.95),
    _Wanted("the same, compiled", "cpu", _R50, "patchnorm", "ratio", 1.00, 0.95, compiled=True),
    _Wanted("the same, bfloat16", "cpu_bf16", _R50, "patchnorm", "ratio", 1.20, 1.05),
    _Wanted("the same, without instructions for bfloat16", "cpu_bf16_emulated", _R50, "patchnorm", "ratio", 1.20, 1.05),
    _Wanted("the same, float32, patchnorm_ws, batch size 16", "cpu_batch16", _R50, "patchnorm_ws", "ratio", 1.08, 1.00),
    _Wanted("training step, resnet18_patchnorm / resnet18", "cpu", _R18, "patchnorm", "ratio", 1.08, 1.00),
    _Wanted("the same, compiled", "cpu", _R18, "patchnorm", "ratio", 1.08, 1.00, compiled=True),
    _Wanted("the same, patchnorm_ws, batch size 32", "cpu_batch32", _R18, "patchnorm_ws", "ratio", 1.15, 1.05),
    _Wanted("inference, resnet50_patchnorm / resnet50", "cpu", _R50, "patchnorm", "infer_step_time", 1.05, 1.00,
            "infer", over="batchnorm"),
    _Wanted("the same, bfloat16", "cpu_bf16", _R50, "patchnorm", "infer_step_time", 1.20, 1.05, "infer",
            over="batchnorm"),
    _Wanted("the same, without instructions for bfloat16", "cpu_bf16_emulated", _R50, "patchnorm", "infer_step_time",
            1.20, 1.05, "infer", over="batchnorm"),
    _Wanted("host time of a 3x3 layer, patchnorm / batch norm", "host", "conv3x3", "patchnorm", "ratio", 1.50, 1.20),
    _Wanted("the same, patchnorm_ws", "host", "conv3x3", "patchnorm_ws", "ratio", 2.00, 1.20),
    _Wanted("host time of a 1x1 layer, patchnorm / batch norm", "host", "conv1x1", "patchnorm", "ratio", 1.50, 1.20),
    _Wanted("the same, patchnorm_ws", "host", "conv1x1", "patchnorm_ws", "ratio", 2.00, 1.20),
)  # fmt: skip


def cpu_bars(results: dict[str, Any]) -> Iterator[Bar]:
    """The requirements, from files' contents by their stems."""
    for wanted in _WANTED:
        rows = {
            row["normalizer"]: row
            for row in results.get(wanted.file, {}).get("rows", [])
            if (row["model"], row["mode"], row["compiled"]) == (wanted.model, wanted.mode, wanted.compiled)
        }
        value = rows.get(wanted.normalizer, {}).get(wanted.column)
        if value is not None and wanted.over is not None:
            value /= rows[wanted.over][wanted.column]
        yield Bar(wanted.label, wanted.file, value, wanted.required, wanted.target, digits=3)
