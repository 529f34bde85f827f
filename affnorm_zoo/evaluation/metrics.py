import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from affnorm_zoo.data import Normalize


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, normalize: Normalize, accelerator: Accelerator) -> dict[str, float]:
    """Top-1, top-5 and loss over all processes, exact for shares of any size.

    Counts are integers and the loss is summed in float64; they are added over the processes once, at the end. The
    model is unwrapped, so that uneven shares cannot make a collective wait.

    Returns:
        ``top1`` and ``top5`` as fractions in [0, 1], the mean cross-entropy ``loss``, and ``num_images``.
    """
    model = accelerator.unwrap_model(model)
    was_training = model.training
    model.eval()
    counts = torch.zeros(3, dtype=torch.int64, device=accelerator.device)  # top-1, top-5, images
    loss_sum = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    for images, labels in loader:
        labels = labels.to(accelerator.device, non_blocking=True)
        with accelerator.autocast():
            logits = model(normalize(images))
        logits = logits.float()
        ranked = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        counts += torch.stack((ranked[:, 0].sum(), ranked.sum(), torch.tensor(len(labels), device=labels.device)))
        loss_sum += F.cross_entropy(logits, labels, reduction="none").double().sum()
    model.train(was_training)
    counts = accelerator.reduce(counts, "sum")
    loss_sum = accelerator.reduce(loss_sum, "sum")
    top1, top5, total = counts.tolist()
    return {"top1": top1 / total, "top5": top5 / total, "loss": loss_sum.item() / total, "num_images": total}
