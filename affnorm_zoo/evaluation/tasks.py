"""What depends on the kind of labels: metrics, their names, losses. Everything else asks the run's task."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from timm.task import MultiLabelClassificationEvaluator
from torch import Tensor, distributed
from torch.nn import functional as F

from affnorm_zoo.diagnostics import summed_cross_entropy

if TYPE_CHECKING:
    from accelerate import Accelerator

_NUM_BINS = 15  # of the calibration error


class Meter(Protocol):
    """Collects logits and labels, and gives their metrics over all processes."""

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (N, C) float32 and its labels; N may be 0."""

    def compute(self, accelerator: "Accelerator") -> dict[str, float]:
        """The metrics and ``num_images``; every process must call it."""


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


@dataclass(frozen=True)
class Metric:
    """A metric on the model card: its key in a report and its name; ``hub_type`` if the card's metadata hold it."""

    key: str
    name: str
    hub_type: str | None = None
    hub_name: str | None = None
    show: Callable[[float], str] = _percent


@dataclass(frozen=True, kw_only=True)
class Task:
    """One kind of labels. ``metrics`` begins with the score, which ranks models and lies in [0, 1]."""

    metrics: tuple[Metric, ...]
    meter: Callable[[torch.device], Meter]
    mean_loss: Callable[[Tensor, Tensor], Tensor]  # of logits and labels, over the images
    summed_loss: Callable[[Tensor, Tensor], Tensor]
    probabilities: Callable[[Tensor], Tensor]  # of each class, from logits (N, C)
    renumber: Callable[[Tensor, Tensor], Tensor]  # labels by the model's outputs, given the output of each class
    columns: Callable[[dict[str, Any]], dict[str, float]]  # of a table, from a report
    problem_type: str | None = None  # transformers' word, written beside weights if it is not the usual one

    @property
    def score(self) -> Metric:
        return self.metrics[0]

    def describe_score(self, report: dict[str, Any]) -> str:
        """The score in words, such as ``top-1 87.80 %``."""
        return f"{self.score.name} {self.score.show(report[self.score.key])}"


class _ClassMeter:
    """Top-1, top-5, mean cross-entropy and calibration. Counts are integers, other sums float64."""

    def __init__(self, device: torch.device) -> None:
        self.counts = torch.zeros(3, dtype=torch.int64, device=device)  # top-1, top-5, images
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.bins = torch.zeros(2, _NUM_BINS, dtype=torch.float64, device=device)  # sums of confidence, of correctness

    def update(self, logits: Tensor, labels: Tensor) -> None:
        ranked = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        self.counts[:2] += torch.stack((ranked[:, 0].sum(), ranked.sum()))
        self.counts[2] += len(labels)
        self.loss_sum += F.cross_entropy(logits, labels, reduction="none").double().sum()
        confidence = logits.double().softmax(1).amax(1)
        index = (confidence * _NUM_BINS).long().clamp(max=_NUM_BINS - 1)
        self.bins[0].index_add_(0, index, confidence)
        self.bins[1].index_add_(0, index, ranked[:, 0].double())

    def compute(self, accelerator: "Accelerator") -> dict[str, float]:
        top1, top5, total = accelerator.reduce(self.counts, "sum").tolist()
        loss_sum, bins = accelerator.reduce(self.loss_sum, "sum"), accelerator.reduce(self.bins, "sum")
        return {
            "top1": top1 / total,
            "top5": top5 / total,
            "loss": loss_sum.item() / total,
            "ece": (bins[0] - bins[1]).abs().sum().item() / total,
            "num_images": total,
        }


class _LabelsMeter:
    """Average precision, F1 and mean binary cross-entropy, by timm's evaluator, which keeps all logits.

    timm counts a class without a positive image as an average precision of 0. Here it is left out of the mean.
    """

    def __init__(self, device: torch.device) -> None:
        self.evaluator = MultiLabelClassificationEvaluator(device)
        self.shown: Tensor | None = None  # (C,) bool: the classes that an image shows

    def update(self, logits: Tensor, labels: Tensor) -> None:
        self.evaluator.update(logits, labels)
        shown = labels.bool().any(0).cpu()
        self.shown = shown if self.shown is None else self.shown | shown

    def compute(self, accelerator: "Accelerator") -> dict[str, float]:
        found = self.evaluator.compute(distributed=accelerator.num_processes > 1)
        counts = accelerator.reduce(self.evaluator.counts, "sum")
        everywhere = [self.shown] * accelerator.num_processes
        if accelerator.num_processes > 1:
            distributed.all_gather_object(everywhere, self.shown)
        # a process without images does not know the number of classes
        shown = torch.stack([flags for flags in everywhere if flags is not None]).any(0)
        num_shown = int(shown.sum())
        return {
            "map": found["map"] / 100 * len(shown) / max(num_shown, 1),
            "micro_f1": found["micro_f1"] / 100,
            "macro_f1": found["macro_f1"] / 100,
            "loss": found["loss"],
            "num_unseen_classes": len(shown) - num_shown,
            "num_images": int(counts[0]),
        }


def _mean_binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def _timms_columns(row: dict[str, Any]) -> dict[str, float]:
    """timm's columns, in per cent."""
    scores = {key: 100 * row[key] for key in ("top1", "top5")}
    return {
        name: round(value, 4)
        for key, score in scores.items()
        for name, value in ((key, score), (f"{key}_err", 100 - score))
    }


CLASSIFICATION = Task(
    metrics=(
        Metric("top1", "top-1", "accuracy", "top-1 accuracy"),
        Metric("top5", "top-5"),
        Metric("ece", "calibration error", show=lambda value: f"{value:.3f} ({_NUM_BINS} bins)"),
    ),
    meter=_ClassMeter,
    mean_loss=F.cross_entropy,
    summed_loss=summed_cross_entropy,
    probabilities=lambda logits: logits.softmax(1),
    renumber=lambda labels, outputs: outputs[labels],
    columns=_timms_columns,
)
MULTILABEL = Task(
    metrics=(
        Metric("map", "mAP", "map", "mean average precision over the classes"),
        Metric("micro_f1", "micro-F1 at 0.5", "f1", "micro-F1 at 0.5"),
        Metric("macro_f1", "macro-F1 at 0.5", "f1", "macro-F1 at 0.5"),
        Metric("num_unseen_classes", "classes that no held-out image shows, left out of the mAP", show=str),
    ),
    meter=_LabelsMeter,
    mean_loss=_mean_binary_cross_entropy,
    summed_loss=lambda logits, labels: _mean_binary_cross_entropy(logits, labels) * len(labels),
    probabilities=lambda logits: logits.sigmoid(),
    renumber=lambda labels, outputs: labels[:, outputs.argsort()],
    columns=lambda row: {key: round(100 * row[key], 4) for key in ("map", "micro_f1", "macro_f1")},
    problem_type="multi_label_classification",
)
TASKS = {"classification": CLASSIFICATION, "multilabel": MULTILABEL}  # by data.task


def task_of_weights(cfg: Any) -> Task:
    """The task of trained weights by the notes in their ``pretrained_cfg``; classification if these do not say."""
    return MULTILABEL if MULTILABEL.problem_type in (cfg.get("notes") or ()) else CLASSIFICATION
