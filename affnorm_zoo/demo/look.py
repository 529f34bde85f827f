"""What the demo shows of one picture: the classes, a heat map of one layer, and all layers. It does not need Gradio."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from affnorm_zoo.data import Normalize, Preprocessing
from affnorm_zoo.data.images import to_rgb
from affnorm_zoo.data.transforms import eval_transform
from affnorm_zoo.diagnostics import factor_map, map_layers
from affnorm_zoo.diagnostics.figures import plot_maps, plot_spread
from affnorm_zoo.errors import UsageError
from affnorm_zoo.evaluation import load_model, task_of_weights
from affnorm_zoo.registry import list_normalizers

STANDARD = ("batchnorm", "layernorm")  # what a divergence-free network is compared with
_ROWS_PER_LAYER = 8  # of the chart of all layers


@dataclass(frozen=True)
class Subject:
    """A trained model, and what it expects of a picture."""

    name: str
    model: nn.Module

    @classmethod
    @lru_cache(maxsize=8)
    def load(cls, name: str) -> "Subject":
        """Load a model with weights by its name, export folder or place on the Hub; see :func:`load_model`.

        Raises:
            UsageError: there is no such model, or it has no weights.
        """
        return cls(name, load_model(name).eval())

    @property
    def _cfg(self) -> dict[str, Any]:
        cfg: Any = self.model.pretrained_cfg
        return cfg

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """As the weights' config says."""
        cfg = self._cfg
        return Preprocessing(
            input_size=tuple(cfg["input_size"]),
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
            crop_pct=cfg.get("crop_pct") or 1.0,
            interpolation=cfg.get("interpolation") or "bicubic",
        )

    @cached_property
    def layers(self) -> list[str]:
        """The layers that have a map."""
        return list(map_layers(self.model, torch.zeros(1, *self.preprocessing.input_size)))

    def prepare(self, picture: Image.Image) -> Tensor:
        """The picture in the model's units, (1, C, H, W)."""
        grey = self.preprocessing.input_size[0] == 1
        pixels = eval_transform(self.preprocessing)(picture.convert("L") if grey else picture)
        return Normalize(self.preprocessing, torch.device("cpu"))(torch.as_tensor(pixels)[None])

    @torch.no_grad()
    def classify(self, images: Tensor) -> dict[str, float]:
        """The five likeliest classes and their probabilities; these need not sum to 1 where images have several."""
        probabilities = task_of_weights(self._cfg).probabilities(self.model(images))[0]
        names = self._cfg.get("label_names") or range(len(probabilities))
        best = probabilities.topk(min(5, len(probabilities)))
        return {str(names[i]): p for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)}


def look(picture: Image.Image, names: list[str], layer: str) -> tuple[dict[str, float], Image.Image, Image.Image]:
    """Classify a picture with the first model, and map the factor of a step over it for all models.

    Args:
        picture: of any size, RGB.
        names: models; all must have the layer.
        layer: the one of the heat map.

    Returns:
        The first model's classes, the heat map, and the chart of all layers.

    Raises:
        UsageError: a model or its layer does not exist.
    """
    subjects = [Subject.load(name) for name in names]
    images = [subject.prepare(picture) for subject in subjects]
    pairs = list(zip(subjects, images, strict=True))
    maps = {subject.name: factor_map(subject.model, image, layer) for subject, image in pairs}
    spread = {
        subject.name: {name: factor_map(subject.model, image, name, most=_ROWS_PER_LAYER) for name in subject.layers}
        for subject, image in pairs
    }
    shown = Normalize(subjects[0].preprocessing, torch.device("cpu")).undo(images[0])
    heat, chart = BytesIO(), BytesIO()
    plot_maps(shown, maps, heat, f"layer {layer}")
    plot_spread(spread, chart)
    return subjects[0].classify(images[0]), Image.open(heat), Image.open(chart)


def open_picture(path: str | Path) -> Image.Image:
    """Read a picture as upright RGB.

    Raises:
        UsageError: the file is not a picture, or is damaged.
    """
    try:
        with Path(path).open("rb") as file:
            return to_rgb(Image.open(file))
    except Exception as error:  # Pillow's plugins raise whatever a damaged file leads them to
        raise UsageError(f"{Path(path).name} is not a picture that Pillow reads: choose a PNG, JPEG or WebP") from error


def find_twin(name: str, names: list[str]) -> str | None:
    """The one of ``names`` that is the same architecture with its standard normaliser, or None.

    If there are several, the one of the same recipe, by its tag, or else the first. A standard model has no twin.
    """
    model, _, tag = name.partition(".")
    for normalizer in sorted(list_normalizers(), key=len, reverse=True):
        if model.endswith(f"_{normalizer}"):
            twins = tuple(f"{model.removesuffix(normalizer)}{standard}." for standard in STANDARD)
            found = [] if normalizer in STANDARD else [other for other in names if other.startswith(twins)]
            return next((other for other in found if other.endswith(f".{tag}")), found[0] if found else None)
    return None
