"""One run of a small network, from its description to its result."""

import copy
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from affnorm_zoo.config import DataConfig
from affnorm_zoo.data import open_source
from affnorm_zoo.data.in_memory import WholeImage, decode
from affnorm_zoo.diagnostics import DivergenceMeter, calibrate, measure_step, summed_cross_entropy
from affnorm_zoo.studies.paper.natural import natural_cosine
from affnorm_zoo.studies.paper.nets import RATE_FACTORS, build_net, scale_outputs

_SPLIT_SEED = 0
START_IMAGES = 1000  # training images on which a start with unit outputs is measured
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}  # without weight decay; SGD without momentum


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Everything, apart from the code, that determines a run's result. ``score``: ``"val"`` (tuning) or ``"test"``."""

    net: str
    method: str
    rate: float
    batch_size: int
    epochs: int
    num_train: int
    seed: int
    score: str
    probes: int = 0
    fisher: int = 0
    optimizer: str = "sgd"
    start: str = "fan_in"
    map_classifier: bool = False

    @property
    def name(self) -> str:
        """A file name unique to the run."""
        return (
            f"{self.net}_{self.method}_b{self.batch_size}_e{self.epochs}_n{self.num_train}_lr{self.rate:g}"
            f"_s{self.seed}_{self.score}"
            + (f"_{self.optimizer}" if self.optimizer != "sgd" else "")
            + (f"_{self.start}" if self.start != "fan_in" else "")
            + ("_mapped" if self.map_classifier else "")
        )


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """Images (N, C, H, W) uint8 and labels (N,) per split, and mean and standard deviation of the training images."""

    name: str
    num_classes: int
    images: dict[str, Tensor]
    labels: dict[str, Tensor]
    mean: Tensor
    std: Tensor

    def normalised(self, split: str, index: Tensor | slice) -> Tensor:
        """Images at ``index``, standardised per channel with the training images' statistics."""
        return (self.images[split][index].float() - self.mean) / self.std

    def share(self) -> "Arrays":
        """Move all tensors to shared memory, where other processes can read them."""
        for tensor in (*self.images.values(), *self.labels.values()):
            tensor.share_memory_()
        return self


def load_arrays(config: DataConfig, num_train: int, num_val: int) -> Arrays:
    """Decode a dataset into memory and split its training set into training and validation images.

    The split is the same for all runs. The validation set of ``config`` becomes ``test``.
    """
    source = open_source(config)
    size = config.image_size or source.image_size or 32
    images, labels = decode(source.train, WholeImage(size), config.workers)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    num_val = min(num_val, len(images) // 5)
    chosen = {"val": order[:num_val], "train": order[num_val : num_val + num_train]}
    test_images, test_labels = decode(source.val, WholeImage(size), config.workers)
    train = images[chosen["train"]].double()
    return Arrays(
        name=source.name,
        num_classes=len(source.class_names),
        images={split: images[index] for split, index in chosen.items()} | {"test": test_images},
        labels={split: labels[index] for split, index in chosen.items()} | {"test": test_labels},
        mean=train.mean((0, 2, 3)).float()[:, None, None],
        std=train.std((0, 2, 3)).float()[:, None, None],
    )


def train_net(trial: Trial, arrays: Arrays) -> dict[str, Any]:
    """Train, and score once at the end.

    The images are shuffled every epoch; an incomplete last batch is dropped. A run stops at a non-finite loss and
    scores 0.

    Returns:
        The run's fields, accuracy and loss on the split ``trial.score``, and the mean loss of the last epoch. With
        ``probes``, also each layer's divergence on that many test images. With ``fisher``, also the natural cosine on
        that many training images before and after training.
    """
    start = perf_counter()
    shape = tuple(arrays.images["train"].shape[1:])
    net = build_net(trial.net, trial.method, shape, arrays.num_classes, trial.seed, trial.map_classifier)
    if trial.start == "unit_outputs":
        scale_outputs(net, arrays.normalised("train", slice(0, START_IMAGES)))
    untrained = _natural(_calibrated(net, arrays), arrays, trial.fisher)
    train_loss = descend(net, trial, arrays)
    accuracy, loss = (0.0, float("nan")) if train_loss is None else evaluate(net, arrays, trial.score)
    result: dict[str, Any] = {
        **asdict(trial),
        "accuracy": accuracy,
        "loss": loss if loss == loss else None,
        "train_loss": train_loss,
        "diverged": train_loss is None,
        "num_parameters": sum(p.numel() for p in net.parameters()),
        "seconds": round(perf_counter() - start, 2),
    }
    if trial.probes and train_loss is not None:
        result["divergence"] = _probe(net, trial, arrays)
    if trial.fisher and train_loss is not None:
        result["natural_cosine"] = {"untrained": untrained, "trained": _natural(net, arrays, trial.fisher)}
    return result


def descend(net: nn.Module, trial: Trial, arrays: Arrays) -> float | None:
    """Train at a constant rate. Returns the mean loss of the last epoch, or None after a non-finite loss."""
    optimizer = _build_optimizer(net, trial)
    generator = torch.Generator().manual_seed(trial.seed)
    images, labels = arrays.normalised("train", slice(None)), arrays.labels["train"]
    net.train()
    losses: list[float] = []
    for _ in range(trial.epochs):
        losses = []
        order = torch.randperm(len(labels), generator=generator)
        for index in order.split(trial.batch_size):
            if len(index) < trial.batch_size:
                break
            loss = F.cross_entropy(net(images[index]), labels[index])
            losses.append(loss.item())
            if not torch.isfinite(loss):
                return None
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return sum(losses) / len(losses)


def _build_optimizer(net: nn.Module, trial: Trial) -> torch.optim.Optimizer:
    rate = trial.rate * RATE_FACTORS.get(trial.method, 1.0)
    return OPTIMIZERS[trial.optimizer](net.parameters(), lr=rate, fused=True)  # one call for all parameters


@torch.no_grad()
def evaluate(net: nn.Module, arrays: Arrays, split: str) -> tuple[float, float]:
    """Accuracy in [0, 1] and mean cross-entropy over a full split."""
    net.eval()
    labels = arrays.labels[split]
    parts = [net(arrays.normalised(split, slice(at, at + 1000))) for at in range(0, len(labels), 1000)]
    logits = torch.cat(parts).double()
    return (logits.argmax(1) == labels).double().mean().item(), F.cross_entropy(logits, labels).item()


def _calibrated(net: nn.Module, arrays: Arrays) -> nn.Module:
    """A copy whose batch norms have the statistics of some training images; an untrained network has none."""
    net = copy.deepcopy(net)
    calibrate(net, [arrays.normalised("train", slice(0, 1000))])
    return net


def _natural(net: nn.Module, arrays: Arrays, count: int) -> float | None:
    x, labels = arrays.normalised("train", slice(0, count)), arrays.labels["train"][:count]
    return natural_cosine(net, x, labels) if count else None


def _probe(net: nn.Module, trial: Trial, arrays: Arrays) -> list[dict[str, Any]]:
    """Each layer's divergence, and how its activations move under one more step of the run on the same images."""
    x, labels = arrays.normalised("test", slice(0, trial.probes)), arrays.labels["test"][: trial.probes]
    meter = DivergenceMeter(net, summed_cross_entropy)
    meter.update(x, labels)
    optimizer = _build_optimizer(net, trial)
    steps = {step.name: step.summary() for step in measure_step(net, optimizer, x, labels, F.cross_entropy)}
    return [{**row, "step": steps[row["layer"]]} for row in meter.summary()]
