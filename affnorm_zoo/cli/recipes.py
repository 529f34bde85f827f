from pathlib import Path

import click

from affnorm_zoo.cli.report import reported_errors
from affnorm_zoo.studies.recipes import write_recipes

_path = click.Path(path_type=Path)


@click.command()
@click.option("--configs", type=_path, default=Path("configs/sweeps"), show_default=True, help="One YAML per sweep.")
@click.option("--results", type=_path, default=Path("docs/recipes"), show_default=True, help="One folder per sweep.")
@click.option("--page", type=_path, default=Path("docs/recipes.md"), show_default=True)
@click.option("--readme", type=_path, default=Path("README.md"), show_default=True)
def recipes(configs: Path, results: Path, page: Path, readme: Path) -> None:
    """Write the page of recipes and the README's table from the sweeps' result files."""
    with reported_errors():
        write_recipes(configs, results, page, readme)
