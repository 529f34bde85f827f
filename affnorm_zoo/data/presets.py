from dataclasses import dataclass

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from affnorm_zoo.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Size in pixels, statistics of the training pixels in [0, 1], and test-time crop of known data."""

    image_size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float | None


_CIFAR10 = Preset(image_size=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), crop_pct=1.0)
_CIFAR100 = Preset(image_size=32, mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762), crop_pct=1.0)
_IMAGENET = Preset(image_size=None, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD, crop_pct=None)

PRESETS = {
    "cifar10": _CIFAR10,
    "cifar100": _CIFAR100,
    "imagenet": _IMAGENET,
    "imagenette": _IMAGENET,
    "imagewoof": _IMAGENET,
}


def get_preset(name: str) -> Preset:
    """Find known data by name.

    Raises:
        UsageError: there is no preset of that name.
    """
    if name not in PRESETS:
        raise UsageError(f"data.preset={name!r} is not known: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
