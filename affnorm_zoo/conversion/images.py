"""The images that a conversion reads: collected, checked, and divided into those that fit and those that measure."""

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from affnorm_zoo.errors import UsageError

MOST_IMAGES = 2048  # read from an iterable; the rest is left
_HELD_OUT = 8  # every eighth image measures


def collect(images: Iterable[Any], model: nn.Module, divides: bool) -> tuple[Tensor, Tensor]:
    """Read batches of images: those to fit with, and those to measure with, the same ones unless ``divides``.

    Args:
        images: batches as the model wants them, or pairs of these and labels, which are not used.
        model: gives device and dtype, and the normalisation that its weights expect.

    Raises:
        UsageError: there are fewer than two images, their sizes differ, or they are not normalised for the model.
    """
    like = next(model.parameters())
    batches: list[Tensor] = []
    for batch in [images] if isinstance(images, Tensor) else images:
        x = batch[0] if isinstance(batch, list | tuple) else batch
        if not (isinstance(x, Tensor) and x.dim() == 4 and x.is_floating_point()):
            given = f"{tuple(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise UsageError(
                f"images must be floating-point batches (N, C, H, W), normalised as the model wants, got {given}"
            )
        if batches and x.shape[1:] != batches[0].shape[1:]:
            raise UsageError(
                f"all images must have one size: got {tuple(x.shape[1:])} after {tuple(batches[0].shape[1:])}"
            )
        batches.append(x.to(like.device, like.dtype))
        if sum(map(len, batches)) >= MOST_IMAGES:
            break
    found = torch.cat(batches)[:MOST_IMAGES] if batches else torch.zeros(0)
    if len(found) < 2:
        raise UsageError(f"images must hold at least two images, got {len(found)}; a few hundred are usual")
    check_normalization(found, getattr(model, "pretrained_cfg", None))
    if not divides:
        return found, found
    is_held_out = torch.arange(len(found)) % _HELD_OUT == min(_HELD_OUT, len(found)) - 1
    return found[~is_held_out.to(found.device)], found[is_held_out.to(found.device)]


def check_normalization(images: Tensor, cfg: dict[str, Any] | None) -> None:
    """Compare the images with the mean and standard deviation of the weights' training images, where these are known.

    Undoing the normalisation must give pixels from 0 to 1, and a set of photographs that fills most of that range.

    Raises:
        UsageError: the images are not normalised by these.
    """
    mean, std = (cfg or {}).get("mean"), (cfg or {}).get("std")
    if mean is None or std is None or len(mean) != images.shape[1]:
        return
    shape = (1, -1, 1, 1)
    pixels = images.float() * torch.tensor(std, device=images.device).reshape(shape)
    pixels = pixels + torch.tensor(mean, device=images.device).reshape(shape)
    low, high, spread = pixels.min().item(), pixels.max().item(), pixels.std().item()
    found = f"undone, it gives pixels from {low:.2f} to {high:.2f} with a deviation of {spread:.2f}"
    expected = f"mean {tuple(mean)} and std {tuple(std)} of the model's pretrained_cfg"
    remedy = "normalise them so; if the weights were trained otherwise, correct model.pretrained_cfg"
    if low < -0.05 or high > 1.05:
        raise UsageError(f"the images are not normalised by {expected}: {found}; {remedy}")
    if high - low < 0.75 and len(images) >= 16:
        warnings.warn(f"the images may not be normalised by {expected}: {found}; {remedy}", stacklevel=4)
