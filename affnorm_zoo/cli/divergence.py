import json
from pathlib import Path
from typing import Any

import click
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from affnorm_zoo.cli.report import reported_errors, split_config
from affnorm_zoo.config import DataConfig, load_config
from affnorm_zoo.data import Normalize, Source, eval_loader, open_source, resolve_preprocessing
from affnorm_zoo.diagnostics import measure_divergence
from affnorm_zoo.evaluation import check_fit, check_model_name, load_model


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--images", "num_images", default=16, show_default=True, help="Of the validation split.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file.")
def divergence(models: tuple[str, ...], num_images: int, output: Path | None) -> None:
    """Measure how unevenly a gradient step moves the activations of each layer.

    MODELS are export folders, hf-hub:ORG/NAME, or timm names, these untrained and fitted to the data; and overrides
    such as data.path=PATH. Without data.path the images are the embedded digits. For an affine layer the factor of a
    sample is its squared length plus one; a divergence-free layer has the same factor for all, and a cv of 0. Layers
    that no gradient reaches, as behind a norm that begins at zero, are left out.
    """
    names, overrides = split_config(models)
    with reported_errors():
        config = load_config(overrides=overrides)
        source = open_source(config.data)
        results = {name: _measure(name, config.data, source, num_images) for name in names}
    for name, rows in results.items():
        click.echo(f"\n{name}, {num_images} images\n{_HEAD}")
        for row in rows:
            click.echo(
                f"{row['layer']:<34}{row['kind']:<18}{row['self_factor']:>12.4g}{row['self_factor_cv']:>10.3g}"
                f"{row['self_factor_p99_over_p1']:>10.3g}{row['factor']:>12.4g}{row['cosine']:>9.3f}"
            )
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


_HEAD = f"{'layer':<34}{'kind':<18}{'self factor':>12}{'cv':>10}{'p99/p1':>10}{'factor':>12}{'cosine':>9}"


def _measure(name: str, config: DataConfig, source: Source, num_images: int) -> list[dict[str, Any]]:
    model = _build(name, source)
    preprocessing = resolve_preprocessing(config, source, model.pretrained_cfg)
    loader = eval_loader(source.val, preprocessing, batch_size=num_images, workers=config.workers)
    images, labels = next(iter(loader))
    x = Normalize(preprocessing, torch.device("cpu"))(images)
    return [layer.summary() for layer in measure_divergence(model, x, labels, _summed_cross_entropy)]


def _build(name: str, source: Source) -> nn.Module:
    if Path(name).is_dir() or ":" in name:
        model = load_model(name)
        check_fit(model, source)
        return model
    check_model_name(name)
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=len(source.class_names), in_chans=source.in_chans)


def _summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="sum")
