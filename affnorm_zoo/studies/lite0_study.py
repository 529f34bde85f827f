"""Conversion of EfficientNet-Lite0 with ImageNet weights, measured on the ten classes of Imagenette."""

import copy
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torch.nn import functional as F

from affnorm_zoo.config import DataConfig, read_yaml, to_schema
from affnorm_zoo.conversion import convert
from affnorm_zoo.errors import UsageError
from affnorm_zoo.evaluation.memory import saved_bytes
from affnorm_zoo.evidence.environment import describe_environment
from affnorm_zoo.runs.files import write_json
from affnorm_zoo.studies.fine_tuning import fine_tune
from affnorm_zoo.studies.images import Split, load_splits, predict
from affnorm_zoo.studies.lite0 import load_lite0

SOURCE = "batchnorm"
_ROUNDS = 7  # of the interleaved steps, after one that is not counted
_NUM_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Lite0Config:
    """What to convert to, and how to fine-tune.

    Args:
        image_size: pixels, seen at the network's own crop.
        kappas: κ/√n of the twins.
        num_fit: training images, without labels, that the conversion reads.
        num_seen: training images, without labels, that the fine-tuning sees once each.
        crop: side in pixels of the part of an image that it sees, at a random place.
        batch_size: images per update.
        rate: learning rate.
        num_test: validation images; 0 takes all.
    """

    image_size: int
    kappas: tuple[float, ...]
    num_fit: int
    num_seen: int
    crop: int
    batch_size: int
    rate: float
    num_test: int


def load_lite0_config(path: Path) -> Lite0Config:
    """Read the YAML.

    Raises:
        UsageError: the file is missing or not YAML, or a key or value does not fit.
    """
    return to_schema(Lite0Config, path, read_yaml(path, Lite0Config))


def run_lite0(config: Lite0Config, data: Path, weights: Path, output: Path) -> None:
    """Measure the network and its twins, on one thread; ``output`` is written after every row.

    Args:
        config: the study.
        data: Imagenette, with folders train and val of folders named by ImageNet's identifiers.
        weights: folder for the package with the weights.
        output: JSON file.
    """
    torch.set_num_threads(1)
    source = load_lite0(weights).to(memory_format=torch.channels_last)
    splits = _load(config, data, source)
    indices = imagenet_indices(sorted(folder.name for folder in (data / "val").iterdir() if folder.is_dir()))
    reference = predict(source, splits["test"])
    result: dict[str, Any] = {
        "environment": describe_environment(),
        "threads": 1,
        "num_test": len(splits["test"]),
        "rows": [{"network": SOURCE, **scores(reference, splits["test"].labels, indices)}],
        "cost": [],
    }
    write_json(output, result)
    fit, twins = splits["fit"], {}
    for kappa in config.kappas:
        made = convert(source, "patchnorm", images=fit.batches(len(fit)), scale=f"rms{kappa:g}")
        twins[kappa] = made.model
        row = {"network": "patchnorm", "kappa": kappa, "updates": 0, "logit_error": made.logit_error}
        result["rows"].append(row | _compared(made.model, splits["test"], indices, reference))
        result["cost"] = result["cost"] or list(costs(source, made.model, fit.batch(slice(0, config.batch_size))))
        write_json(output, result)
    for kappa, twin in sorted(twins.items()):
        loss = distil(twin, source, splits["seen"], config)
        row = {"network": "patchnorm", "kappa": kappa, "updates": -(-config.num_seen // config.batch_size)}
        result["rows"].append(row | {"train_loss": loss} | _compared(twin, splits["test"], indices, reference))
        write_json(output, result)


def imagenet_indices(names: list[str]) -> list[int]:
    """ImageNet's class numbers of WordNet identifiers.

    Raises:
        UsageError: a name is none of ImageNet's 1,000.
    """
    info = ImageNetInfo()
    numbers = {info.index_to_label_name(index): index for index in range(info.num_classes())}
    unknown = [name for name in names if name not in numbers]
    if unknown:
        raise UsageError(f"the classes must be named by ImageNet's identifiers, such as n01440764; got {unknown[0]!r}")
    return [numbers[name] for name in names]


def scores(logits: Tensor, labels: Tensor, indices: list[int]) -> dict[str, float]:
    """Accuracy in [0, 1] among all classes of the logits (N, 1000), and among those of ``indices`` alone."""
    classes = torch.tensor(indices)
    return {
        "of_1000": (logits.argmax(1) == classes[labels]).double().mean().item(),
        "among_ten": (logits[:, classes].argmax(1) == labels).double().mean().item(),
    }


def distil(twin: nn.Module, source: nn.Module, seen: Split, config: Lite0Config) -> float | None:
    """Fine-tune ``twin`` in place to the source's probabilities on random crops, without labels.

    Returns:
        The mean divergence of the last tenth of the updates, or None after a non-finite one.
    """
    generator = torch.Generator().manual_seed(0)
    twin.train()

    def loss_of(index: Tensor) -> Tensor:
        top, left = torch.randint(seen.images.shape[-1] - config.crop + 1, (2,), generator=generator).tolist()
        images = seen.batch(index)[..., top : top + config.crop, left : left + config.crop]
        with torch.no_grad():
            target = F.log_softmax(source(images), 1)
        return F.kl_div(F.log_softmax(twin(images), 1), target, log_target=True, reduction="batchmean")

    batches = list(torch.randperm(len(seen), generator=generator).split(config.batch_size))
    return fine_tune(twin, batches, loss_of, rate=config.rate, weight_decay=0.0)


def costs(source: nn.Module, twin: nn.Module, images: Tensor) -> Iterator[dict[str, Any]]:
    """Saved bytes and the time of forward and backward, steps of both taken in turns, as ratios to the source's."""
    networks = {SOURCE: copy.deepcopy(source).train(), "patchnorm": copy.deepcopy(twin).train()}
    times: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(_ROUNDS + 1):
        for name, network in networks.items():
            times[name].append(_step_seconds(network, images))
    base = saved_bytes(networks[SOURCE], images)
    for name, network in networks.items():
        pairs = [ours / theirs for ours, theirs in zip(times[name][1:], times[SOURCE][1:], strict=True)]
        saved = saved_bytes(network, images)
        yield {
            "network": name,
            "saved_mib": saved / 2**20,
            "saved_ratio": saved / base,
            "step_ratio": statistics.median(pairs),
            "step_ratio_quartiles": statistics.quantiles(pairs, n=4)[::2],
        }


def _load(config: Lite0Config, data: Path, source: nn.Module) -> dict[str, Split]:
    named = DataConfig(path=str(data), image_size=config.image_size)
    counts = {"fit": config.num_fit, "seen": config.num_seen, "test": config.num_test}
    return load_splits(named, source.pretrained_cfg, counts, _NUM_CLASSES)


def _compared(twin: nn.Module, test: Split, indices: list[int], reference: Tensor) -> dict[str, float]:
    logits = predict(twin, test)
    same = (logits.argmax(1) == reference.argmax(1)).double().mean().item()
    return scores(logits, test.labels, indices) | {"agreement": same}


def _step_seconds(network: nn.Module, images: Tensor) -> float:
    start = time.perf_counter()
    network(images).square().mean().backward()
    return time.perf_counter() - start
