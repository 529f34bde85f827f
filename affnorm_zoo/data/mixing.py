"""Augmentation of whole batches on the device, after normalisation, in the main process."""

import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from affnorm_zoo.config import DataConfig


class BatchAugment:
    """Erase and mix a batch of normalised images, (N, C, H, W), with labels (N,), or (N, num_classes).

    It draws from the global generators of Python, NumPy and torch, which the training loop seeds for every update.
    With mixup or cutmix the labels are probabilities (N, num_classes), even after mixing is switched off.
    """

    def __init__(self, config: DataConfig, num_classes: int, label_smoothing: float, device: torch.device) -> None:
        self.off_epoch = config.mixup_off_epoch
        self.erase = RandomErasing(config.erase, mode="pixel", device=device) if config.erase else None
        self.mix = None
        if config.mixes:
            self.mix = Mixup(
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                label_smoothing=label_smoothing,
                num_classes=num_classes,
                multi_label=config.task == "multilabel",
            )

    def set_epoch(self, epoch: int) -> None:
        """Stop mixing from ``mixup_off_epoch`` on."""
        if self.mix is not None and self.off_epoch is not None:
            self.mix.mixup_enabled = epoch < self.off_epoch

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.erase is not None:
            images = self.erase(images)
        if self.mix is not None:
            images, labels = self.mix(images, labels)
        return images, labels
