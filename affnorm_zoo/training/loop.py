import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from affnorm_zoo.data import BatchAugment, Normalize, ShardedBatches, StreamedBatches
from affnorm_zoo.errors import UsageError
from affnorm_zoo.training.deepspeed import is_deepspeed
from affnorm_zoo.training.rates import gradients_over_kappa
from affnorm_zoo.training.seeding import seed_generators
from affnorm_zoo.training.state import RunState, unwrap_optimizer


class NonFiniteError(RuntimeError):
    """A gradient is non-finite; the message names the update and its images."""


@dataclass
class Window:
    """The results of one window of micro-batches: mean loss on this process, gradient norm before clipping, times."""

    number: int  # over all epochs, from 1
    update: int  # updates until then, this one included unless it was skipped
    loss: Tensor
    grad_norm: Tensor
    lr: float
    num_images: int
    seconds: float
    wait_seconds: float  # part of it spent waiting for the loader


@dataclass
class Trainer:
    """Trains the model, one epoch at a time.

    A window is one update attempt: the micro-batches whose gradients are accumulated. The gradient is the mean over all
    their images, on all processes. Everything random in a window is seeded by (seed, epoch, window, process).
    """

    accelerator: Accelerator
    state: RunState
    schedule: Scheduler
    loss: nn.Module
    normalize: Normalize
    augment: BatchAugment
    batches: ShardedBatches | StreamedBatches
    loader: Iterable
    seed: int
    clip_norm: float | None = None
    clip: Callable[[], None] | None = None  # clipping other than by norm
    channels_last: bool = False
    replays_graphs: bool = False  # with CUDA graphs, the next step overwrites all outputs, including gradients
    teacher: Callable[[Tensor], Tensor] | None = None  # gives targets for the augmented images in the labels' place
    skip_non_finite: bool = False
    max_skips: int = 10
    pending: list[Window] = field(default_factory=list)  # not read yet: reading waits for the device

    def __post_init__(self) -> None:
        self._parameters = list(self.state.model.parameters())  # walking the modules at every step takes time

    def windows(self) -> Iterator[None]:
        """Train to the end of the current epoch; yields after every window.

        Raises:
            NonFiniteError: more than ``max_skips`` gradients in a row are non-finite.
            UsageError: a batch cannot be loaded.
        """
        progress = self.state.progress
        self.state.model.train()
        self.augment.set_epoch(progress.epoch)
        self.batches.set_epoch(progress.epoch, progress.window)
        iterator = iter(self.loader)
        for window in range(progress.window, self.batches.num_updates):
            try:
                self._train_window(iterator, window)
            except RuntimeError as error:  # a dead worker raises a signal, which can interrupt any line
                if str(error).startswith("DataLoader "):
                    raise self._loader_failed(window, str(error)) from error
                raise
            yield

    def drain(self) -> list[Window]:
        """Read the windows since the last call; their loss is now the mean over all processes.

        Raises:
            NonFiniteError: a window had a non-finite gradient, and the config does not skip these.
        """
        windows, self.pending = self.pending, []
        if not windows:
            return []
        losses = self.accelerator.reduce(torch.stack([w.loss for w in windows]), "mean").tolist()
        norms = torch.stack([w.grad_norm.to(torch.float32) for w in windows]).tolist()
        for window, loss, norm in zip(windows, losses, norms, strict=True):
            window.loss, window.grad_norm = torch.tensor(loss), torch.tensor(norm)
            if math.isfinite(loss):
                self.state.progress.loss_sum += loss
                self.state.progress.num_losses += 1
            if not math.isfinite(norm) and not self.skip_non_finite and self.accelerator.scaler is None:
                raise self._non_finite(window.number, window.update, norm, window.lr)
        return windows

    def _train_window(self, iterator: Iterator, window: int) -> None:
        """Run the micro-batches of a window, and take the optimiser step."""
        progress, start = self.state.progress, time.perf_counter()
        accelerator = self.accelerator
        seed_generators(accelerator.device, self.seed, progress.epoch, window, accelerator.process_index)
        share, count = self.batches.share(window), self.batches.num_micro_batches(window)
        loss = torch.zeros((), device=accelerator.device)
        wait = 0.0
        for number in range(count):
            asked = time.perf_counter()
            images, labels = self._next(iterator, window)
            wait += time.perf_counter() - asked
            loss += self._backward(images, labels, weight=len(labels) / share, synchronise=number == count - 1)
            if self.replays_graphs and number == 0 and count > 1:
                for parameter in self._parameters:  # the gradients of the other micro-batches are added to it in place
                    parameter.grad = None if parameter.grad is None else parameter.grad.clone()
        lr = max(group["lr"] for group in self.state.optimizer.param_groups)
        norm = self._step(lr)
        progress.window += 1
        progress.windows += 1
        num_images = share * accelerator.num_processes
        progress.samples += num_images
        seconds = time.perf_counter() - start
        self.pending.append(Window(progress.windows, progress.updates, loss, norm, lr, num_images, seconds, wait))

    def _backward(self, images: Tensor, labels: Tensor, weight: float, synchronise: bool) -> Tensor:
        """Add one micro-batch to the gradient and return its share of the loss."""
        model = self.state.model
        x, targets = self.augment(self.normalize(images), labels.to(self.accelerator.device, non_blocking=True))
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        if self.teacher is not None:
            with self.accelerator.autocast():
                targets = self.teacher(x)
        if self.replays_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        engine = getattr(self.accelerator, "deepspeed_engine_wrapped", None)  # only under DeepSpeed
        with nullcontext() if synchronise or engine is not None else self.accelerator.no_sync(model):
            with self.accelerator.autocast():
                loss = self.loss(model(x), targets) * weight
            if engine is None:
                self.accelerator.backward(loss)
            else:
                engine.backward(loss, sync_gradients=synchronise)  # also clips and steps at the end of the window
        return loss.detach().float()

    def _step(self, lr: float) -> Tensor:
        """Clip, step, average and advance the schedule; return the gradient norm before clipping."""
        state, progress = self.state, self.state.progress
        optimizer, norm = self._optimizer, self._clip_norm()
        if self.skip_non_finite and not math.isfinite(float(norm)):
            optimizer.zero_grad()
            progress.skips += 1
            if progress.skips > self.max_skips:
                raise self._non_finite(progress.windows + 1, progress.updates + 1, float(norm), lr)
            return norm
        if self.clip is not None:
            self.clip()
        optimizer.step()
        optimizer.zero_grad()
        if not self.accelerator.optimizer_step_was_skipped:  # float16's scaler skips a step after an overflow
            progress.skips = 0
            progress.updates += 1
            if state.ema is not None:
                state.ema.update(state.bare_model, progress.updates)
            self.schedule.step_update(progress.updates)
        return norm

    def _clip_norm(self) -> Tensor:
        """The gradient norm before clipping; clips afterwards if configured."""
        if self.clip_norm is not None:
            with gradients_over_kappa(self.state.optimizer):
                norm = self.accelerator.clip_grad_norm_(self._parameters, self.clip_norm)
        elif is_deepspeed(self.accelerator):
            norm = self.accelerator.clip_grad_norm_(self._parameters, math.inf)  # DeepSpeed has already computed it
        else:
            self.accelerator.unscale_gradients()
            norm = get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        return norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm)

    @property
    def _optimizer(self) -> Optimizer:
        """accelerate's wrapper only if a scaler or DeepSpeed needs it: it searches for packages at every step."""
        wrapped = self.state.optimizer
        needed = self.accelerator.scaler is not None or is_deepspeed(self.accelerator)
        return wrapped if needed else unwrap_optimizer(wrapped)

    def _next(self, iterator: Iterator, window: int) -> Any:
        """The next batch. An error in a worker names the images of the batch."""
        try:
            return next(iterator)
        except OSError as error:  # the pipe of a dead worker; its signal may arrive later
            time.sleep(1)
            raise self._loader_failed(window, str(error)) from error

    def _loader_failed(self, window: int, cause: str) -> UsageError:
        progress = self.state.progress
        return UsageError(
            f"the loader failed at update {progress.updates + 1}, epoch {progress.epoch + 1}, images "
            f"{self._images(progress.epoch, window)}: {cause.splitlines()[0]}; data.workers=0 may show why"
        )

    def _images(self, epoch: int, window: int) -> str:
        names = [str(index) for _, index, _ in self.batches.global_batch(epoch, window)]
        if not names:
            return "of a stream"
        return ", ".join(names[:16]) + (f" and {len(names) - 16} more" if len(names) > 16 else "")

    def _non_finite(self, number: int, update: int, norm: float, lr: float) -> NonFiniteError:
        skips = self.state.progress.skips
        return NonFiniteError(
            f"the gradient norm is {norm} at update {update}{f', {skips} in a row' if skips else ''}, learning rate "
            f"{lr:.3g}, images {self._images(*divmod(number - 1, self.batches.num_updates))}"
        )
