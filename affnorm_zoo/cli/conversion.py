from pathlib import Path

import click

from affnorm_zoo.cli.report import COUNT, USER_PATH, reported_errors
from affnorm_zoo.config import load_config
from affnorm_zoo.studies.conversion import Study
from affnorm_zoo.studies.conversion_report import write_page

_results = click.option(
    "--results", type=USER_PATH, default=Path("docs/conversion/resnet20_cifar.json"), show_default=True
)


@click.group()
def conversion() -> None:
    """Measure what the conversion of a trained network keeps of its accuracy."""


@conversion.command()
@click.argument("overrides", nargs=-1)
@click.option(
    "--config", type=USER_PATH, default=Path("configs/cifar10/resnet20_cifar_finetune.yaml"), show_default=True
)
@click.option("--work", type=USER_PATH, default=Path("runs/conversion"), show_default=True, help="Networks and runs.")
@click.option("--seeds", type=COUNT, default=3, show_default=True, help="Conversions per scale and fit.")
@click.option(
    "--fine-tuned-seeds",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Fine-tuning runs with labels, and as many without.",
)
@_results
def measure(
    overrides: tuple[str, ...], config: Path, work: Path, seeds: int, fine_tuned_seeds: int, results: Path
) -> None:
    """Convert and fine-tune on the data that OVERRIDES name, such as data.path=PATH data.val_split=test.

    Finished measurements are kept, so an interrupted study can be resumed.
    """
    with reported_errors():
        results.parent.mkdir(parents=True, exist_ok=True)
        Study(load_config(overrides=overrides).data, config, results, work).run(seeds, fine_tuned_seeds)


@conversion.command()
@click.option("--page", type=USER_PATH, default=Path("docs/conversion.md"), show_default=True)
@_results
def report(page: Path, results: Path) -> None:
    """Write the tables of the page from the results."""
    write_page(results, page)
