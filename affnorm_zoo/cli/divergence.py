import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import click
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model as load_weights
from torch import Tensor, nn

from affnorm_zoo.cli.divergence_table import divergence_table
from affnorm_zoo.cli.report import COUNT, OUTPUT_FILE, SEED, USER_PATH, reported_errors, split_config
from affnorm_zoo.config import DataConfig, is_folder, load_config
from affnorm_zoo.data import Normalize, Preprocessing, Source, eval_loader, open_source, resolve_preprocessing
from affnorm_zoo.diagnostics import DivergenceMeter, calibrate, factor_map, map_layers, measure_step
from affnorm_zoo.diagnostics.figures import plot_depth, plot_maps
from affnorm_zoo.errors import UsageError
from affnorm_zoo.evaluation import (
    TASKS,
    Task,
    check_classifier,
    check_fit,
    check_model_name,
    load_model,
    match_labels,
)
from affnorm_zoo.evidence.environment import describe_environment
from affnorm_zoo.runs.layout import WEIGHTS_FILE

OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "adamw": torch.optim.AdamW,
}
MOST_MAPS = 4  # rows of a figure of heat maps


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--vs", multiple=True, metavar="MODEL", help="Another model to compare with; may be repeated.")
@click.option("--data", help="Short for data.path=PATH.")
@click.option("--checkpoint", type=USER_PATH, help="Weights (safetensors) for the first of MODELS.")
@click.option("--images", "num_images", type=COUNT, default=16, show_default=True, help="Number of validation images.")
@click.option("--batch-size", type=COUNT, default=8, show_default=True, help="Images in memory at a time.")
@click.option("--optimizer", type=click.Choice(list(OPTIMIZERS)), default="sgd", show_default=True)
@click.option(
    "--lr", type=click.FloatRange(min=0), default=1e-3, show_default=True, help="Learning rate of the real steps."
)
@click.option(
    "--steps",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Real steps; only the last one is measured. 0: none.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of untrained weights and drawn positions.")
@click.option("--output", type=OUTPUT_FILE, help="JSON file; a figure of the same name is written next to it.")
@click.option("--maps", type=OUTPUT_FILE, help="PNG file: heat maps of one layer's self factor over the first images.")
@click.option("--layer", help="The layer of --maps; by default the middle one of the first model.")
def divergence(
    models: tuple[str, ...],
    vs: tuple[str, ...],
    data: str | None,
    checkpoint: Path | None,
    output: Path | None,
    maps: Path | None,
    layer: str | None,
    **options,
) -> None:
    """Measure how unevenly a gradient step moves the activations of each layer.

    MODELS are export folders, hf-hub:ORG/NAME or timm names, mixed with overrides such as data.path=PATH. Models from
    timm names are untrained and sized for the data. Without data.path the images are scikit-learn's digits.

    For an affine layer the factor of a sample is its squared length plus one. A divergence-free layer has the same
    factor for all samples, and a cv of 0.

    In untrained models, norms with zero weights start at one: otherwise the layers before them would get no gradient.
    Batch norms of untrained models take their statistics from the images.
    """
    names, overrides = split_config(models)
    names += vs
    with reported_errors():
        if not names:
            raise UsageError("name a model, such as resnet50_patchnorm; affnorm-zoo list shows the zoo's")
        config = load_config(overrides=[*overrides, *([f"data.path={data}"] if data else [])])
        source = open_source(config.data)
        weights = {names[0]: checkpoint}
        results = {}
        drawn: dict[str, Tensor] = {}
        for name in names:
            model, batches, preprocessing = _prepare(name, weights.get(name), config.data, source, **options)
            results[name] = _measure(model, batches, TASKS[config.data.task], **options)
            if maps is not None:
                images = next(batches())[0][:MOST_MAPS]
                layer = layer or _middle_layer(name, model, images[:1])
                drawn[name] = factor_map(model, images, layer)
                if len(drawn) == 1:
                    pictures = Normalize(preprocessing, torch.device("cpu")).undo(images)
    for name, result in results.items():
        click.echo(divergence_table(name, result))
    if maps is not None:
        maps.parent.mkdir(parents=True, exist_ok=True)
        plot_maps(pictures, drawn, maps, f"layer {layer}, images of {source.name}, seed {options['seed']}")
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        record = {"command": command, "data": source.name, **options, "environment": describe_environment()}
        text = json.dumps({**record, "models": results}, indent=1)
        output.write_text(text + "\n", encoding="utf-8")
        caption = f"{options['num_images']} images of {source.name}, seed {options['seed']}"
        layers, attention = ({name: result[key] for name, result in results.items()} for key in ("layers", "attention"))
        plot_depth(layers, output.with_suffix(".png"), caption, attention)


def _prepare(
    name: str,
    checkpoint: Path | None,
    config: DataConfig,
    source: Source,
    *,
    num_images: int,
    batch_size: int,
    seed: int,
    **_: Any,
) -> tuple[nn.Module, Callable[[], Iterator[tuple[Tensor, Tensor]]], Preprocessing]:
    """The model, ready to be measured, its batches, and how their images are made."""
    model = _build(name, source, seed)
    outputs = match_labels(name, model, source, config.labels_by_position) if _is_stored(name) else None
    if checkpoint is not None:
        _load_checkpoint(model, checkpoint)
    preprocessing = resolve_preprocessing(config, source, model.pretrained_cfg, trained=_is_stored(name))
    check_classifier(name, model, preprocessing.input_size, len(source.class_names))
    renumber = partial(_renumber, TASKS[config.task], outputs)
    batches = partial(_batches, source, preprocessing, batch_size, num_images, config.workers, seed, renumber)
    if checkpoint is None and not _is_stored(name):
        calibrate(model, (images for images, _ in batches()))
    return model, batches, preprocessing


def _measure(
    model: nn.Module,
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]],
    task: Task,
    *,
    optimizer: str,
    lr: float,
    steps: int,
    seed: int,
    **_: Any,
) -> dict[str, Any]:
    meter = DivergenceMeter(model, task.summed_loss, seed)
    for images, labels in batches():
        meter.update(images, labels)
    result: dict[str, Any] = {
        "layers": meter.summary(),
        "attention": meter.attention_summary(),
        "seconds": meter.seconds,
    }
    if steps:
        around = islice(chain.from_iterable(batches() for _ in count()), steps)
        result["steps"] = _step(model, OPTIMIZERS[optimizer](model.parameters(), lr=lr), list(around), task)
    return result


def _batches(
    source: Source,
    preprocessing: Preprocessing,
    batch_size: int,
    num_images: int,
    workers: int,
    seed: int,
    renumber: Callable[[Tensor], Tensor],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised validation images, drawn at random or the first ones of a stream, with the model's labels."""
    chosen = None  # a folder lists its images class by class
    if not source.is_stream:
        chosen = torch.randperm(source.num_val, generator=torch.Generator().manual_seed(seed))[:num_images].tolist()
    loader = eval_loader(source.val, preprocessing, batch_size=batch_size, workers=workers, indices=chosen)
    normalize = Normalize(preprocessing, torch.device("cpu"))
    num_batches = -(-min(num_images, source.num_val) // batch_size)
    for images, labels in islice(loader, num_batches):
        yield normalize(images), renumber(labels)


def _renumber(task: Task, outputs: list[int] | None, labels: Tensor) -> Tensor:
    return labels if outputs is None else task.renumber(labels, torch.tensor(outputs))


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[tuple[Tensor, Tensor]], task: Task
) -> list[dict[str, Any]]:
    """Take a real step on each batch and measure the last one; batch statistics do not change."""
    model.eval()
    for images, labels in batches[:-1]:
        optimizer.zero_grad()
        task.mean_loss(model(images), labels).backward()
        optimizer.step()
    return [layer.summary() for layer in measure_step(model, optimizer, *batches[-1], task.mean_loss)]


def _middle_layer(name: str, model: nn.Module, image: Tensor) -> str:
    layers = list(map_layers(model, image))
    if not layers:
        raise UsageError(f"--maps needs a layer with more than one position, and {name} has none")
    return layers[len(layers) // 2]


def _build(name: str, source: Source, seed: int) -> nn.Module:
    if _is_stored(name):
        model = load_model(name)
        check_fit(model, source)
        return model
    check_model_name(name)
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=len(source.class_names), in_chans=source.in_chans)
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 1 and not weight.any():
            nn.init.ones_(weight)
    return model


def _is_stored(name: str) -> bool:
    """Whether a name means stored weights, in a folder or on the Hub, and not an architecture."""
    return is_folder(name) or ":" in name


def _load_checkpoint(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"--checkpoint {path} is not a file; a run's weights are in RUN/{WEIGHTS_FILE}")
    try:
        load_weights(model, path)
    except (RuntimeError, SafetensorError) as error:
        raise UsageError(f"--checkpoint {path} does not fit the model: {str(error).splitlines()[0]}") from error
