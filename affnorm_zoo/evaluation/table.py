import csv
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from affnorm_zoo.config import DataConfig
from affnorm_zoo.data import Normalize, Preprocessing, Source, eval_loader, resolve_preprocessing
from affnorm_zoo.evaluation.agree import raised_together
from affnorm_zoo.evaluation.labels import match_labels
from affnorm_zoo.evaluation.metrics import evaluate
from affnorm_zoo.evaluation.models import check_classifier, check_fit, load_model

if TYPE_CHECKING:
    from accelerate import Accelerator  # as in metrics

_logger = logging.getLogger(__name__)


def evaluate_model(
    name: str, config: DataConfig, source: Source, accelerator: "Accelerator", batch_size: int
) -> dict[str, Any]:
    """Load a model and measure it on the validation split.

    Args:
        name: any name that :func:`load_model` accepts.
        batch_size: images per process.

    Returns:
        The metrics of :func:`evaluate`, and facts about the model: name, data, parameters, size in pixels, crop.

    Raises:
        UsageError: on all processes; the model cannot be loaded or does not match the data, or these cannot be read.
    """
    with raised_together(accelerator):
        model = load_model(name)
        check_fit(model, source)
        outputs = match_labels(name, model, source, config.labels_by_position)
        own: Any = model.pretrained_cfg
        preprocessing = resolve_preprocessing(config, source, own, trained=True)
        size = preprocessing.input_size[-1]
        if own.get("fixed_input_size") and size != own["input_size"][-1]:
            model = load_model(name, img_size=size)
        check_classifier(name, model, preprocessing.input_size, len(source.class_names))
        _compare_statistics(name, preprocessing, own)
    loader = eval_loader(
        source.val,
        preprocessing,
        batch_size=batch_size,
        workers=config.workers,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    normalize = Normalize(preprocessing, accelerator.device)
    if outputs is not None:
        loader = _relabel(loader, torch.tensor(outputs))
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


def _relabel(loader: Iterable[tuple[Tensor, Tensor]], outputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches whose labels are the model's class numbers instead of the data's."""
    for images, labels in loader:
        yield images, outputs[labels]


def _compare_statistics(name: str, preprocessing: Preprocessing, own: dict[str, Any]) -> None:
    """Warn where the config's preprocessing differs from that of the weights' training."""
    for key in ("mean", "std"):
        asked, trained = getattr(preprocessing, key), tuple(own[key])
        if asked != trained:
            _logger.warning("%s was trained with the %s %s and is measured with %s", name, key, trained, asked)


def write_results(rows: list[dict[str, Any]], path: Path) -> None:
    """Write a CSV file with timm's result columns: per cent, millions of parameters, best model first."""
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
