from pathlib import Path
from typing import Any

import click
import torch

from affnorm_zoo.cli.report import COUNT, SEED, USER_PATH, reported_errors, split_config
from affnorm_zoo.config import load_config
from affnorm_zoo.conversion import convert as convert_model
from affnorm_zoo.conversion.fit import FITS
from affnorm_zoo.data import Normalize, eval_loader, open_source, resolve_preprocessing
from affnorm_zoo.errors import UsageError
from affnorm_zoo.evaluation import check_fit, load_model
from affnorm_zoo.evidence.environment import describe_environment
from affnorm_zoo.factory.bind import UNNORMED
from affnorm_zoo.hub import export_conversion


@click.command()
@click.argument("name")
@click.argument("overrides", nargs=-1)
@click.option("--data", help="Images: a folder with one subfolder per split; like data.path=PATH.")
@click.option("--output", type=USER_PATH, required=True, metavar="FOLDER", help="New folder, which timm then loads.")
@click.option("--normalizer", default="patchnorm", show_default=True)
@click.option("--scale", default="rms4", show_default=True, help="rms, rms4, rms<r> for κ = r√n, or unit.")
@click.option(
    "--fit", type=click.Choice(FITS), help="Default: lstsq below κ = 4√n and for small kernels, channel otherwise."
)
@click.option(
    "--unnormed",
    type=click.Choice(UNNORMED),
    default="plain",
    show_default=True,
    help="Linear layers of a transformer with no norm before them: convert (bind) or keep (plain).",
)
@click.option(
    "--images",
    "num_images",
    type=COUNT,
    default=512,
    show_default=True,
    help="Training images to fit and measure with.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the choice of images.")
def convert(
    name: str,
    overrides: tuple[str, ...],
    data: str | None,
    output: Path,
    normalizer: str,
    scale: str,
    fit: str | None,
    unnormed: str,
    num_images: int,
    seed: int,
) -> None:
    """Replace the norms of a trained network by a divergence-free normaliser, without training.

    NAME is a timm name with weights, an export folder, local-dir:PATH or hf-hub:ORG/NAME. OVERRIDES are options of the
    data, such as data.train_split=training. No labels are used. `affnorm-zoo evaluate NAME FOLDER` then compares both.
    """
    with reported_errors():
        names, overrides_only = split_config(overrides)
        if names:
            raise UsageError(f"after NAME come overrides such as data.path=PATH, got {names[0]!r}")
        given = [f"data.path={data}"] if data else []
        config = load_config(overrides=[*given, *overrides_only]).data
        source = open_source(config)
        model = load_model(name)
        check_fit(model, source)
        cfg: Any = model.pretrained_cfg
        preprocessing = resolve_preprocessing(config, source, cfg, trained=True)
        normalize = Normalize(preprocessing, torch.device("cpu"))
        chosen = torch.randperm(source.num_train, generator=torch.Generator().manual_seed(seed))[:num_images].tolist()
        loader = eval_loader(source.train, preprocessing, batch_size=64, workers=config.workers, indices=chosen)
        batches = (normalize(images) for images, _ in loader)
        conversion = convert_model(model, normalizer, images=batches, scale=scale, fit=fit, unnormed=unnormed)
        facts = dict(scale=scale, data=source.name, seed=seed, environment=describe_environment(torch.device("cpu")))
        labels = cfg.get("label_names")
        export_conversion(conversion, output, name, facts, None if labels is None else tuple(labels))
    click.echo(conversion)
    click.echo(output)
