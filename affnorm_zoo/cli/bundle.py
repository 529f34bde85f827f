from pathlib import Path

import click

from affnorm_zoo.cli.report import USER_PATH, reported_errors
from affnorm_zoo.hub.bundle import bundle


@click.command()
@click.argument("runs", nargs=-1, required=True, type=USER_PATH)
@click.option("--tag", required=True, help="Data and recipe, such as c10_e100.")
@click.option("--half", is_flag=True, help="Store the weights in float16.")
def bundle_weights(runs: tuple[Path, ...], tag: str, half: bool) -> None:
    """Add the median of RUNS, one recipe's seeds, to the weights that come with the package.

    The stored weights are evaluated again on the runs' validation split. Afterwards update docs/models.md with
    `affnorm-zoo list --table`.
    """
    with reported_errors():
        click.echo(bundle(runs, tag, half=half))
