from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from timm.utils import distribute_bn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from affnorm_zoo.data import Normalize, dead_workers_named
from affnorm_zoo.errors import UsageError
from affnorm_zoo.evaluation.agree import raised_together
from affnorm_zoo.evaluation.tasks import CLASSIFICATION, Task

if TYPE_CHECKING:
    from accelerate import Accelerator  # takes a second, and loading a model needs none


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    normalize: Normalize,
    accelerator: "Accelerator",
    interrupted: Callable[[], bool] = lambda: False,
    task: Task = CLASSIFICATION,
) -> dict[str, float] | None:
    """The task's metrics over all processes, exact for any number of images per process.

    The processes combine their results once, at the end. The model is unwrapped, so uneven shares cannot block a
    collective. Sharded weights are gathered per batch; a rank that runs out of batches repeats its last one so that
    collectives match. All processes use the first one's running statistics of batch norm.

    Args:
        interrupted: called before every batch; once it is true on one process, the result is None on all.
        task: of the labels.

    Raises:
        UsageError: on all processes; an image of one of them cannot be read, or a worker has died.

    Returns:
        ``num_images`` and the mean ``loss``. For one class per image also ``top1``, ``top5`` and the expected
        calibration error ``ece``. For any number of classes ``map``, the mean over the classes of the average
        precision, ``num_unseen_classes``, the number of classes that are not in that mean since no image shows them,
        and ``micro_f1`` and ``macro_f1`` of probabilities from 0.5 on. Fractions lie in [0, 1]. None if interrupted.

    Source:
        Calibration error: Guo et al. 2017, https://arxiv.org/abs/1706.04599, eq. 3, with 15 bins.
    """
    model = accelerator.unwrap_model(model)
    if accelerator.num_processes > 1:
        distribute_bn(model, accelerator.num_processes, reduce=False)
    was_training = model.training
    model.eval()
    device = accelerator.device
    meter, stops = task.meter(device), torch.zeros((), dtype=torch.int64, device=device)
    batches = _in_step(loader, accelerator) if is_sharded(model) else loader
    with raised_together(accelerator), dead_workers_named():
        for images, labels in batches:
            if interrupted():
                stops += 1
                if batches is loader:
                    break
            labels = labels.to(device, non_blocking=True)
            with accelerator.autocast():
                logits = model(normalize(images))
            meter.update(logits[: len(labels)].float(), labels)
    model.train(was_training)
    return None if accelerator.reduce(stops, "sum").item() else meter.compute(accelerator)


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
