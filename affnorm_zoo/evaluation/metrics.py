from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from timm.utils import distribute_bn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from affnorm_zoo.data import Normalize, dead_workers_named
from affnorm_zoo.errors import UsageError
from affnorm_zoo.evaluation.agree import raised_together

if TYPE_CHECKING:
    from accelerate import Accelerator  # takes a second, and loading a model needs none

_NUM_BINS = 15  # of the calibration error


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    normalize: Normalize,
    accelerator: "Accelerator",
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Top-1, top-5, loss and calibration over all processes, exact for any number of images per process.

    Counts are integers, other sums are float64. They are added over the processes once, at the end. The model is
    unwrapped, so uneven shares cannot block a collective. Sharded weights are gathered per batch; a rank that runs out
    of batches repeats its last one so that collectives match. All processes use the first one's running statistics of
    batch norm.

    Args:
        interrupted: called before every batch; once it is true on one process, the result is None on all.

    Raises:
        UsageError: on all processes; an image of one of them cannot be read, or a worker has died.

    Returns:
        ``top1`` and ``top5`` as fractions in [0, 1], the mean cross-entropy ``loss``, the expected calibration error
        ``ece`` in [0, 1], and ``num_images``; None if interrupted.

    Source:
        Calibration error: Guo et al. 2017, https://arxiv.org/abs/1706.04599, eq. 3, with 15 bins.
    """
    model = accelerator.unwrap_model(model)
    if accelerator.num_processes > 1:
        distribute_bn(model, accelerator.num_processes, reduce=False)
    was_training = model.training
    model.eval()
    device = accelerator.device
    counts = torch.zeros(4, dtype=torch.int64, device=device)  # top-1, top-5, images, interrupted
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    bins = torch.zeros(2, _NUM_BINS, dtype=torch.float64, device=device)  # sums of confidence, of correctness
    batches = _in_step(loader, accelerator) if is_sharded(model) else loader
    with raised_together(accelerator), dead_workers_named():
        for images, labels in batches:
            if interrupted():
                counts[3] += 1
                if batches is loader:
                    break
            labels = labels.to(device, non_blocking=True)
            with accelerator.autocast():
                logits = model(normalize(images))
            logits = logits[: len(labels)].float()
            ranked = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            counts[:2] += torch.stack((ranked[:, 0].sum(), ranked.sum()))
            counts[2] += len(labels)
            loss_sum += F.cross_entropy(logits, labels, reduction="none").double().sum()
            _add_calibration(bins, logits, ranked[:, 0])
    model.train(was_training)
    top1, top5, total, stopped = accelerator.reduce(counts, "sum").tolist()
    loss_sum, bins = accelerator.reduce(loss_sum, "sum"), accelerator.reduce(bins, "sum")
    if stopped:
        return None
    return {
        "top1": top1 / total,
        "top5": top5 / total,
        "loss": loss_sum.item() / total,
        "ece": (bins[0] - bins[1]).abs().sum().item() / total,
        "num_images": total,
    }


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds only a part of the weights, as under FSDP 2."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def _in_step(loader: Iterable[tuple[Tensor, Tensor]], accelerator: "Accelerator") -> Iterator[tuple[Tensor, Tensor]]:
    """The same number of batches on every process: a process that runs out repeats its last one, without labels.

    Raises:
        UsageError: a process has no batch, or cannot read it.
    """
    batches = iter(loader)
    with raised_together(accelerator):
        first = next(batches, None)
    if accelerator.gather(torch.tensor([first is None], device=accelerator.device)).any():
        raise UsageError(
            f"sharded weights need at least one validation image per process, for {accelerator.num_processes} processes"
        )
    assert first is not None
    images, labels = first
    while True:
        yield images, labels
        with raised_together(accelerator):
            following = next(batches, None)
        if not accelerator.gather(torch.tensor([following is not None], device=accelerator.device)).any():
            return
        images, labels = following or (images, labels[:0])


def _add_calibration(bins: Tensor, logits: Tensor, correct: Tensor) -> None:
    """Add each image's confidence and correctness to the bin of its confidence."""
    confidence = logits.double().softmax(1).amax(1)
    index = (confidence * _NUM_BINS).long().clamp(max=_NUM_BINS - 1)
    bins[0].index_add_(0, index, confidence)
    bins[1].index_add_(0, index, correct.double())
