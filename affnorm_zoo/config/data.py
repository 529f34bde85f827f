import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from affnorm_zoo.config.paths import expand_home
from affnorm_zoo.config.require import is_unicode, require, require_use, require_values

PACKED_SUFFIX = ".safetensors"
_MOST_WORKERS = 1024
_LEAST_STD = 1e-4  # below it pixels overflow float16
_LEAST_CROP = 0.1  # the resized image, of which this share is seen, would otherwise fill the memory


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images and their augmentation. Without a path: scikit-learn's handwritten digits, 8 px, grey."""

    path: str | None = None  # folder of splits or tars, hfds/NAME, wds/FOLDER or a packed FILE.safetensors; ~ is home
    task: Literal["classification", "multilabel"] = "classification"  # multilabel: any number of classes per image
    labels: str | None = None  # of task=multilabel: a CSV; {split} in its path stands for the name of the split
    num_classes: int | None = None  # needed for wds/FOLDER only; other data know their classes
    note: str | None = None  # what a reader of the model card should know of the images, such as how they were made
    hub_id: str | None = None  # ORG/NAME or ORG/NAME:TASK of these very images on the Hub, to file the result under
    train_split: str = "train"
    val_split: str = "val"
    labels_by_position: bool = False  # match classes to those of pretrained weights by their order, not their names
    hold_out: int = 0  # training images to leave out and to validate on, instead of val_split: for tuning
    preset: str | None = None  # known data whose size, mean, std and crop are taken, such as cifar10
    image_size: int | None = None  # in pixels; None: the preset's, otherwise the model's
    mean: tuple[float, ...] | None = None  # of the pixels in [0, 1]; None: likewise
    std: tuple[float, ...] | None = None
    crop_pct: float | None = None  # share of the resized image that is seen at test time; None: likewise
    crop: Literal["resized", "padded", "none"] = "padded"  # padded: shift by up to an eighth of the image
    hflip: float = 0.0  # probability
    auto_augment: str | None = None  # timm's notation, such as rand-m9-mstd0.5-inc1
    erase: float = 0.0  # probability of erasing a rectangle of the normalised image
    mixup: float = 0.0  # alpha; 0: none
    cutmix: float = 0.0  # alpha; 0: none
    mixup_off_epoch: int | None = None  # epochs after which images are no longer mixed
    repeats: int = 1  # different augmentations of an image in one global batch
    drop_last: bool = True  # leave out what does not fill a last global batch
    in_memory: Literal["auto", "always", "never"] = "auto"  # decode once, augment on the device
    cache: bool = False  # keep what in_memory decodes beside the folder or tar, for other processes and runs
    workers: int = 0  # processes that decode images, per rank
    timeout_seconds: int = 300  # longest wait for a batch from a worker
    max_bad_images: int = 0  # training images that a run may fail to decode and replace by their neighbours

    def __post_init__(self) -> None:
        require_values("data", self)
        require(self.path is None or self.name != "", f"data.path names no data: {self.path!r}")
        require(is_unicode(self.name), f"data.path must name data in Unicode, got {self.name!r}: give a link to them")
        for name in ("train_split", "val_split"):
            require(getattr(self, name).strip() != "", f"data.{name} must name a split, got {getattr(self, name)!r}")
        known = self.hub_id is None or re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", self.hub_id)
        require(bool(known), f"data.hub_id must be ORG/NAME or ORG/NAME:TASK, got {self.hub_id!r}")
        self._check_task()
        classes = self.num_classes
        require(classes is None or classes > 1, f"data.num_classes must be at least 2, got {classes}")
        for value in self.mean or ():
            require(0 <= value <= 1, f"data.mean must lie in [0, 1], as pixels of 0 to 255 are divided by 255: {value}")
        for value in self.std or ():
            in_range = _LEAST_STD <= value <= 1
            require(
                in_range, f"data.std must lie in [{_LEAST_STD}, 1], as pixels of 0 to 255 are divided by 255: {value}"
            )
        require(self.workers <= _MOST_WORKERS, f"data.workers must be at most {_MOST_WORKERS}, got {self.workers}")
        require(self.image_size is None or self.image_size > 0, f"data.image_size must be positive: {self.image_size}")
        for name in ("hflip", "erase"):
            require(0 <= getattr(self, name) <= 1, f"data.{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("mixup", "cutmix", "workers", "max_bad_images", "hold_out"):
            require(getattr(self, name) >= 0, f"data.{name} must not be negative, got {getattr(self, name)}")
        crop = self.crop_pct
        require(crop is None or _LEAST_CROP <= crop <= 1, f"data.crop_pct must lie in [{_LEAST_CROP}, 1], got {crop}")
        require(self.repeats > 0, f"data.repeats must be positive, got {self.repeats}")
        require(self.timeout_seconds > 0, f"data.timeout_seconds must be positive, got {self.timeout_seconds}")
        require(
            self.auto_augment is None or self.crop == "resized",
            f"data.auto_augment needs data.crop=resized, got data.crop={self.crop}",
        )
        require(
            self.in_memory != "always" or self.crop != "resized",
            "data.in_memory=always augments by shifts and flips: it needs data.crop=padded or none",
        )
        require(self.drop_last or not self.mixes, "data.mixup and data.cutmix need data.drop_last=true")
        decodes = self.kind in ("local", "hfds")
        require_use(decodes, "data", self, "max_bad_images", "images in a folder, a tar or hfds/NAME")
        require(
            self.in_memory != "always" or self.kind != "wds",
            "data.in_memory=always needs an indexable dataset; a WebDataset stream is not",
        )
        require_use(self.in_memory != "never", "data", self, "cache", "data.in_memory=auto or always")
        require(
            not self.cache or self.kind == "local",
            f"data.cache=true needs a folder or tar, got data.path={self.path}: affnorm-zoo pack takes others too",
        )
        off = self.mixup_off_epoch
        require(off is None or self.mixes, "data.mixup_off_epoch needs data.mixup or data.cutmix")
        require(off is None or off > 0, f"data.mixup_off_epoch must be positive, got {off}")

    def _check_task(self) -> None:
        """Raise UsageError unless path and labels are those of the task."""
        require_use(self.task == "multilabel", "data", self, "labels", "data.task=multilabel")
        require(
            self.task != "multilabel" or bool(self.labels),
            "data.task=multilabel needs data.labels, a CSV with the labels of each image",
        )
        require(
            self.task != "multilabel" or self.kind == "local",
            f"data.task=multilabel needs a folder or tars of images, got data.path={self.path}",
        )

    @property
    def kind(self) -> Literal["digits", "packed", "hfds", "wds", "local"]:
        """What ``path`` names; "local" is a folder of splits or tars."""
        if self.path is None:
            return "digits"
        if self.path.endswith(PACKED_SUFFIX):
            return "packed"
        return "hfds" if self.path.startswith("hfds/") else "wds" if self.path.startswith("wds/") else "local"

    @property
    def local_path(self) -> str:
        """The path below its kind, ``hfds/`` or ``wds/``, with ``~`` as the home folder; empty for the digits."""
        return expand_home((self.path or "").removeprefix("hfds/").removeprefix("wds/"))

    @property
    def name(self) -> str:
        """What the data are called: the last part of their path."""
        if self.path is None:
            return "digits"
        if not self.local_path.strip():
            return ""
        path = Path(self.local_path)
        return path.name if path.name not in ("", "..") else path.resolve().name or "data"

    @property
    def mixes(self) -> bool:
        """Whether images are blended with each other."""
        return self.mixup > 0 or self.cutmix > 0
