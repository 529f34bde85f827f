"""Measure the divergence during training, at chosen updates, on validation images."""

import time
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from affnorm_zoo.data import eval_loader
from affnorm_zoo.diagnostics import DivergenceMeter, measure_step
from affnorm_zoo.errors import UsageError
from affnorm_zoo.training.assemble import Run
from affnorm_zoo.training.processes import shards_weights

_STEP_COLUMNS = ("cosine", "length", "moving_cosine", "moving_length")


class DivergenceProbe:
    """Measures on the main process without changing the run's weights or RNG state.

    The real step uses copies of the model and the run's own optimiser, with its momenta and learning rate, but without
    clipping and augmentation.

    Raises:
        UsageError: the weights are sharded, so no process holds the full model.
    """

    def __init__(self, run: Run) -> None:
        self.every = run.config.runtime.divergence_updates
        self.run = run
        self.num_images = run.config.runtime.divergence_images
        self.batch: tuple[Tensor, Tensor] | None = None
        self.seconds = 0.0  # spent measuring, since the start of this process
        if self.every is not None and shards_weights(run.accelerator):
            raise UsageError("runtime.divergence_updates needs the full model in one process, but FSDP shards it")

    def is_due(self) -> bool:
        """Whether to measure now: after the current update, or before the first. True only on the main process."""
        is_main = self.run.accelerator.is_main_process
        return is_main and self.every is not None and self.run.progress.windows % self.every == 0

    def measure(self) -> dict[str, Any]:
        """One line of ``metrics.jsonl``: how uneven each layer's factor is, and how its activations follow a step."""
        start, trainer = time.perf_counter(), self.run.trainer
        self.batch = self.batch or self._load()
        state, progress = trainer.state, trainer.state.progress
        with torch.random.fork_rng(), trainer.accelerator.autocast():
            meter = DivergenceMeter(state.bare_model, self.run.task.summed_loss)
            meter.update(*self.batch)
            optimizer: Any = state.optimizer  # accelerate's wrapper
            steps = measure_step(state.bare_model, optimizer.optimizer, *self.batch, self.run.task.mean_loss)
        by_layer = {step.name: step.summary() for step in steps}
        layers = []
        for row in meter.summary():
            step = by_layer.get(row["layer"], {})
            columns = {f"step_{name}": step.get(name) for name in _STEP_COLUMNS}
            means = {name: row[name]["mean"] for name in ("self_factor", "factor", "cosine", "interference")}
            layers.append({"layer": row["layer"], "cv": row["cv"], **means, **columns})
        attention = [
            {"layer": row["layer"], "kind": row["kind"], "cv": row["cv"], "factor": row["factor"]["mean"]}
            for row in meter.attention_summary()
        ]
        seconds = time.perf_counter() - start
        self.seconds += seconds
        place = {"update": progress.updates, "window": progress.windows, "epoch": progress.epoch + 1}
        return {**place, "seconds": round(seconds, 3), "layers": layers, "attention": attention}

    def _load(self) -> tuple[Tensor, Tensor]:
        parts, source = self.run.parts, self.run.parts.source
        count = min(self.num_images, source.num_val)
        # evenly spaced over the split: a folder lists its images class by class
        indices = None if source.is_stream else [i * source.num_val // count for i in range(count)]
        loader = eval_loader(source.val, parts.preprocessing, batch_size=count, indices=indices)
        ((images, labels),) = islice(loader, 1)
        return parts.trainer.normalize(images), labels.to(self.run.accelerator.device)
