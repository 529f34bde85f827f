"""A small part of a dataset in memory."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from affnorm_zoo.config import DataConfig
from affnorm_zoo.data import Preprocessing, open_source, resolve_preprocessing
from affnorm_zoo.data.in_memory import decode
from affnorm_zoo.data.part import Part
from affnorm_zoo.data.transforms import eval_transform

_SPLIT_SEED = 0
_EVAL_BATCH = 100


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images (N, C, H, W) uint8, their labels (N,), and the statistics that the network expects."""

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor | slice) -> Tensor:
        """Standardised images at ``index``, channels last."""
        images = (self.images[index].float() / 255 - self.mean) / self.std
        return images.contiguous(memory_format=torch.channels_last)

    def batches(self, count: int, batch_size: int = _EVAL_BATCH) -> list[Tensor]:
        """The first ``count`` images, standardised."""
        return [self.batch(slice(at, min(at + batch_size, count))) for at in range(0, count, batch_size)]


def load_splits(config: DataConfig, pretrained_cfg: dict, counts: dict[str, int], num_classes: int) -> dict[str, Split]:
    """Decode images for a network, preprocessed as its weights expect.

    Args:
        config: names the data, a folder, and the image size if it is not the network's own.
        pretrained_cfg: of the network.
        counts: images per split: ``"test"`` takes the first of a fixed order of the data's validation images, 0 takes
            all; every other split takes the next ones of a fixed order of the training images.
        num_classes: the first classes by name, whose images alone are taken.
    """
    source = open_source(config)
    preprocessing = resolve_preprocessing(config, source, pretrained_cfg, trained=True)
    train, test = (_order(dataset.reader.targets, num_classes) for dataset in (source.train, source.val))
    splits, at = {}, 0
    for name, count in counts.items():
        if name == "test":
            splits[name] = _decode(source.val, test[: count or None], preprocessing)
        else:
            splits[name] = _decode(source.train, train[at : at + count], preprocessing)
            at += count
    return splits


@torch.no_grad()
def predict(model: nn.Module, split: Split) -> Tensor:
    """Logits of all images, (N, num_classes); the model is in evaluation mode afterwards."""
    model.eval()
    return torch.cat([model(split.batch(slice(at, at + _EVAL_BATCH))) for at in range(0, len(split), _EVAL_BATCH)])


def score(model: nn.Module, split: Split) -> tuple[float, float]:
    """Accuracy in [0, 1] and mean cross-entropy."""
    logits = predict(model, split).double()
    return (logits.argmax(1) == split.labels).double().mean().item(), F.cross_entropy(logits, split.labels).item()


def _order(targets: np.ndarray, num_classes: int) -> list[int]:
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(_SPLIT_SEED)).tolist()
    return [index for index in order if targets[index] < num_classes]


def _decode(dataset: object, indices: list[int], preprocessing: Preprocessing) -> Split:
    images, labels = decode(Part(dataset, indices), eval_transform(preprocessing), workers=0)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return Split(images=images, labels=labels, mean=mean, std=std)
