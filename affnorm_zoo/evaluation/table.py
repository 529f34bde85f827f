import csv
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from affnorm_zoo.config import DataConfig
from affnorm_zoo.data import Normalize, Source, eval_loader, resolve_preprocessing
from affnorm_zoo.evaluation.metrics import evaluate
from affnorm_zoo.evaluation.models import check_fit, load_model


def evaluate_model(
    name: str, config: DataConfig, source: Source, accelerator: Accelerator, batch_size: int
) -> dict[str, Any]:
    """Load a model and measure it on the validation split.

    Args:
        name: as :func:`load_model` takes it.
        batch_size: images a process.

    Returns:
        The metrics of :func:`evaluate`, and what the model was: name, data, parameters, size in pixels, crop.

    Raises:
        UsageError: the model cannot be loaded, or does not fit the data.
    """
    model = load_model(name)
    check_fit(model, source)
    preprocessing = resolve_preprocessing(config, source, model.pretrained_cfg)
    loader = eval_loader(
        source.val,
        preprocessing,
        batch_size=batch_size,
        workers=config.workers,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    normalize = Normalize(preprocessing, accelerator.device)
    metrics = evaluate(model.to(accelerator.device), loader, normalize, accelerator)
    assert metrics is not None
    return {
        "model": name,
        "data": source.name,
        **metrics,
        "parameters": sum(p.numel() for p in model.parameters()),
        "img_size": preprocessing.input_size[-1],
        "crop_pct": preprocessing.crop_pct,
        "interpolation": preprocessing.interpolation,
    }


def write_results(rows: list[dict[str, Any]], path: Path) -> None:
    """Write a CSV file with the columns of timm's results: per cent, millions of parameters, best first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        for row in sorted(rows, key=lambda row: -row["top1"]):
            top1, top5 = 100 * row["top1"], 100 * row["top5"]
            writer.writerow(
                {
                    "model": row["model"],
                    "top1": round(top1, 4),
                    "top1_err": round(100 - top1, 4),
                    "top5": round(top5, 4),
                    "top5_err": round(100 - top5, 4),
                    "param_count": round(row["parameters"] / 1e6, 2),
                    "img_size": row["img_size"],
                    "crop_pct": row["crop_pct"],
                    "interpolation": row["interpolation"],
                }
            )


_COLUMNS = ("model", "top1", "top1_err", "top5", "top5_err", "param_count", "img_size", "crop_pct", "interpolation")
