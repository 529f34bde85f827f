"""Networks with batch norms that have seen data, and images for them."""

import torch
from torch import nn
from torch.nn import functional as F

NEARLY_AFFINE = (1e6, 1e6)
EVEN = dict(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def pixels(count=24, size=32, seed=0):
    """Images of blobs from 0 to 1, normalised for EVEN, in float64."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator, dtype=torch.float64)
    return (F.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1) - 0.5) / 0.25


def settle(model, images, seed=0):
    """Give the norms of a model statistics that fit, and random gains and shifts; float64, evaluation mode."""
    torch.manual_seed(seed)
    model = model.double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.momentum = None
    model.train()(images)
    if hasattr(model, "pretrained_cfg"):
        model.pretrained_cfg.update(EVEN)
    return model.eval()


class Plain(nn.Module):
    """A network of one convolution with its norm."""

    def __init__(self, *args, **kwargs):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(*args, **kwargs), nn.BatchNorm2d(args[1]))

    def forward(self, x):
        return self.body(x)
