"""The shortest loop that fine-tunes a network on images in memory.

The engine of a run opens a folder, saves checkpoints and can be resumed; that takes longer than one of these runs.
"""

import math
from collections.abc import Callable

from torch import Tensor, nn

from affnorm_zoo.config import OptimConfig
from affnorm_zoo.training.builders import build_optimizer, build_schedule

_WARMUP = 0.1  # share of the updates


def fine_tune(
    model: nn.Module,
    batches: list[Tensor],
    loss_of: Callable[[Tensor], Tensor],
    *,
    rate: float,
    weight_decay: float,
) -> float | None:
    """Train with AdamW for one update per batch, with a warm-up and a cosine schedule. The model keeps its mode.

    Args:
        model: the network.
        batches: indices of each update's images.
        loss_of: the loss of a batch of indices.
        rate: the highest learning rate; the bias of a layer with a κ has 1/κ of it.
        weight_decay: one-dimensional parameters have none.

    Returns:
        The mean loss of the last tenth of the updates, or None after a non-finite loss.
    """
    optim = OptimConfig(
        lr=rate, weight_decay=weight_decay, kwargs={"fused": True}, warmup_epochs=_WARMUP, bias_over_kappa=True
    )
    optimizer = build_optimizer(optim, model, len(batches[0]))
    schedule = build_schedule(optim, optimizer, 1, len(batches))
    losses: list[float] = []
    for update, index in enumerate(batches):
        schedule.step_update(update)
        loss = loss_of(index)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            return None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    last = losses[-max(len(losses) // 10, 1) :]
    return sum(last) / len(last)
