from pathlib import Path

import click

from affnorm_zoo.cli.report import OUTPUT_FILE, reported_errors, split_config
from affnorm_zoo.config import load_config
from affnorm_zoo.data import pack as pack_data


@click.command()
@click.argument("config", nargs=-1)
@click.option("--output", type=OUTPUT_FILE, required=True, help="File, ending in .safetensors.")
def pack(config: tuple[str, ...], output: Path) -> None:
    """Decode a dataset once into one file that data.path opens.

    CONFIG are YAML files and overrides such as data.path=PATH data.val_split=test data.image_size=64 data.workers=2.
    Without an image size, all images must be square and of one size.
    """
    with reported_errors():
        info = pack_data(load_config(*split_config(config)).data, output)
    size = output.stat().st_size / 2**20
    train, val = info.num_images.values()
    click.echo(
        f"{output}: {train} training and {val} validation images, {info.in_chans} x {info.image_size} x "
        f"{info.image_size}, {len(info.class_names)} classes, {size:.0f} MiB"
    )
