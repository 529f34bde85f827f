from pathlib import Path

import click

from affnorm_zoo.cli.report import USER_PATH, reported_errors
from affnorm_zoo.hub.bundle import bundle


@click.command()
@click.argument("runs", nargs=-1, required=True, type=USER_PATH)
@click.option("--tag", required=True, help="Data and recipe, such as c10_e100.")
@click.option("--half", is_flag=True, help="Store the weights in float16.")
def bundle_weights(runs: tuple[Path, ...], tag: str, half: bool) -> None:
    """Put the median one of RUNS, one recipe's seeds, among the weights that travel with the package.

    The stored weights are measured again on the runs' validation split. Afterwards `affnorm-zoo list --table` writes
    docs/models.md anew.
    """
    with reported_errors():
        click.echo(bundle(runs, tag, half=half))
