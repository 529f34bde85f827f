"""The effect of one real optimiser step on a batch's activations, against gradient descent on the activations."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from affnorm_zoo.diagnostics.recording import Call, Loss, bare, in_full_precision, record_calls, record_inputs


@dataclass(frozen=True)
class StepAlignment:
    """How a layer's pre-activations z move under one step with learning rate η; (N,) float64 each, over a batch.

    Args:
        name: name of the module.
        kind: class of the module.
        cosine: between Δz and the ideal -ηg, all positions of a sample together, with the other layers fixed.
        length: ‖Δz‖ / ‖ηg‖, likewise.
        moving_cosine, moving_length: the same with all layers moving, so the layer's input changes too.
    """

    name: str
    kind: str
    cosine: Tensor
    length: Tensor
    moving_cosine: Tensor
    moving_length: Tensor

    def summary(self) -> dict[str, Any]:
        """Means, and the lengths' coefficient of variation."""
        columns = {
            f"{prefix}{column}": getattr(self, f"{prefix}{column}").mean().item()
            for prefix in ("", "moving_")
            for column in ("cosine", "length")
        }
        cv = (self.length.std(correction=0) / self.length.mean()).item()
        return {"layer": self.name, "kind": self.kind, **columns, "length_cv": cv, "n": len(self.cosine)}


def measure_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, loss: Loss
) -> list[StepAlignment]:
    """Take one step on a copy of model and optimiser, and measure how each layer's activations move.

    The step uses the optimiser's momentum and second moments. Schedules and clipping are up to the caller. Batch
    statistics follow the model's mode. Random operations such as dropout draw the same before and after the step.

    Args:
        model: any torch model; neither it nor the optimiser changes.
        optimizer: over parameters of ``model``; its groups may have different learning rates.
        images: (N, C, H, W), the batch of the step.
        labels: (N,).
        loss: (logits, labels) -> the sum or mean of the losses over the batch.

    Returns:
        One entry per layer that the step changes and whose output gets a gradient, in the order of the calls.

    Raises:
        ValueError: the model is compiled in place.
    """
    model, optimizer = copy.deepcopy((bare(model), optimizer))
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    with _repeatable():
        calls = record_calls(model, images, labels, loss, list(rates))
    calls = [call for call in calls if call.module.weight in rates]
    with torch.no_grad(), in_full_precision(images):
        before = {call.name: call.pre_activation() for call in calls}
    optimizer.step()
    with _repeatable():
        inputs = record_inputs(model, images, calls)
    with torch.no_grad(), in_full_precision(images):
        aligned = [_align(call, rates[call.module.weight], before[call.name], inputs[call.name]) for call in calls]
    return [layer for layer in aligned if layer is not None]


def _align(call: Call, rate: float, before: Tensor, x_after: Tensor) -> StepAlignment | None:
    g = call.g.flatten(1).double()
    chosen = g.norm(dim=1) > 0
    if not chosen.any() or not rate:
        return None
    columns = []
    for x in (call.x, x_after):
        move = (call.pre_activation(x=x) - before).flatten(1).double()[chosen]
        ideal = -rate * g[chosen]
        lengths, ideal_lengths = move.norm(dim=1), ideal.norm(dim=1)
        columns += [(move * ideal).sum(1) / (lengths * ideal_lengths).clamp_min(1e-300), lengths / ideal_lengths]
    return StepAlignment(call.name, type(call.module).__name__, *columns)


@contextmanager
def _repeatable() -> Iterator[None]:
    """Use the same random numbers each time, and restore the outer RNG state."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
