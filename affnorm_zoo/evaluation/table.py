import csv
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from affnorm_zoo.config import DataConfig
from affnorm_zoo.data import Normalize, Preprocessing, Source, eval_loader, resolve_preprocessing
from affnorm_zoo.errors import UsageError
from affnorm_zoo.evaluation.agree import raised_together
from affnorm_zoo.evaluation.labels import match_labels
from affnorm_zoo.evaluation.metrics import evaluate
from affnorm_zoo.evaluation.models import check_classifier, check_fit, load_model
from affnorm_zoo.evaluation.tasks import CLASSIFICATION, MULTILABEL, TASKS, Task, task_of_weights

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
        task = TASKS[config.task]
        if task_of_weights(model.pretrained_cfg) is MULTILABEL and task is not MULTILABEL:
            raise UsageError(f"{name} gives any number of classes per image: set data.task=multilabel and data.labels")
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
        loader = _renumber(loader, torch.tensor(outputs), task)
    metrics = evaluate(model.to(accelerator.device), loader, normalize, accelerator, task=task)
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


def _renumber(loader: Iterable[tuple[Tensor, Tensor]], outputs: Tensor, task: Task) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches whose labels have the model's numbers of the classes instead of the data's."""
    for images, labels in loader:
        yield images, task.renumber(labels, outputs)


def _compare_statistics(name: str, preprocessing: Preprocessing, own: dict[str, Any]) -> None:
    """Warn where the config's preprocessing differs from that of the weights' training."""
    for key in ("mean", "std"):
        asked, trained = getattr(preprocessing, key), tuple(own[key])
        if asked != trained:
            _logger.warning("%s was trained with the %s %s and is measured with %s", name, key, trained, asked)


def write_results(rows: list[dict[str, Any]], path: Path, task: Task = CLASSIFICATION) -> None:
    """Write a CSV file with timm's result columns: per cent, millions of parameters, best model first.

    Labels of another task have that task's metrics in the place of top-1 and top-5.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    ranked = sorted(rows, key=lambda row: -row[task.score.key])
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        metrics = list(task.columns(dict.fromkeys((metric.key for metric in task.metrics), 0.0)))
        writer.writerow(["model", *metrics, "param_count", *_FACTS])
        for row in ranked:
            size = round(row["parameters"] / 1e6, 2)
            writer.writerow([row["model"], *task.columns(row).values(), size, *(row[fact] for fact in _FACTS)])


_FACTS = ("img_size", "crop_pct", "interpolation")
