"""What one real optimiser step does to the activations of a batch, against what gradient descent on them would do."""

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
    """How a layer's pre-activations z move under one step of rate η, (N,) float64 each, over the samples of a batch.

    Args:
        name: of the module.
        kind: its class.
        cosine: between Δz and the ideal -ηg, all positions of a sample together, with the other layers held.
        length: ‖Δz‖ / ‖ηg‖, the same.
        moving_cosine, moving_length: with all layers moving, so that the layer's input changes as well.
    """

    name: str
    kind: str
    cosine: Tensor
    length: Tensor
    moving_cosine: Tensor
    moving_length: Tensor

    def summary(self) -> dict[str, Any]:
        """Means, and the coefficient of variation of the lengths."""
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
    """Take one step on a copy of model and optimiser, and see where each layer's activations went.

    Momentum and second moments are those that the optimiser holds; schedules and clipping are the caller's. Batch
    statistics are those of the mode that the model is in; randomness, as of dropout, is the same before and after.

    Args:
        model: any torch model; neither it nor the optimiser changes.
        optimizer: over parameters of ``model``, which may be in groups of different rates.
        images: (N, C, H, W), the batch that the step is taken on.
        labels: (N,).
        loss: of logits and labels, summed or averaged over the batch.

    Returns:
        One entry a layer that the step changes and whose output gets a gradient, in the order of the calls.

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
    """The same random numbers each time, and none taken from those outside."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
