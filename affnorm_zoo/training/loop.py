import math
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from affnorm_zoo.data import Normalize


class NonFiniteError(RuntimeError):
    """The gradient is no longer a number, so that the next step would spoil the weights."""


@dataclass
class Trainer:
    """The parts of a run that change the weights, and one epoch of using them.

    ``micro_batches`` is the number of batches whose gradients make one update; the gradient is the mean over the
    images of all of them, on all processes. ``updates`` counts the steps taken.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizer: Optimizer
    schedule: Scheduler | None
    loss: nn.Module
    normalize: Normalize
    micro_batches: int
    clip_grad: float | None
    channels_last: bool = False
    updates: int = 0

    def train_epoch(self, batches: Iterable) -> dict[str, float]:
        """Go through the batches once.

        Returns:
            Mean loss over the epoch, mean gradient norm before clipping, learning rate at the end, images a second.

        Raises:
            NonFiniteError: the gradient norm of an update is not finite; the weights are those before it.
        """
        self.model.train()
        start = time.perf_counter()
        loss_sum = torch.zeros((), device=self.accelerator.device)
        norm_sum, num_updates, num_images = 0.0, 0, 0
        for number, (images, labels) in enumerate(batches, start=1):
            is_update = number % self.micro_batches == 0
            loss_sum += self._backward(images, labels, synchronise=is_update)
            num_images += len(labels)
            if is_update:
                norm_sum += self._update()
                num_updates += 1
        mean_loss = self.accelerator.reduce(loss_sum, "mean").item() / (num_updates * self.micro_batches)
        seconds = time.perf_counter() - start
        return {
            "loss": mean_loss,
            "grad_norm": norm_sum / num_updates,
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_second": num_images * self.accelerator.num_processes / seconds,
        }

    def _backward(self, images: torch.Tensor, labels: torch.Tensor, synchronise: bool) -> torch.Tensor:
        """Add one micro-batch to the gradient and return its loss."""
        x = self.normalize(images)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with nullcontext() if synchronise else self.accelerator.no_sync(self.model):
            with self.accelerator.autocast():
                loss = self.loss(self.model(x), labels.to(x.device, non_blocking=True))
            self.accelerator.backward(loss / self.micro_batches)
        return loss.detach()

    def _update(self) -> float:
        """Take one step and return the norm of the gradient before clipping."""
        limit = self.clip_grad if self.clip_grad is not None else math.inf
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), limit))
        if not math.isfinite(norm) and self.accelerator.scaler is None:
            rate = self.optimizer.param_groups[0]["lr"]
            raise NonFiniteError(f"the gradient norm is {norm} at update {self.updates}, learning rate {rate:.3g}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not self.accelerator.optimizer_step_was_skipped:
            self.updates += 1
            if self.schedule is not None:
                self.schedule.step_update(self.updates)
        return norm
