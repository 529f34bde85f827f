from pathlib import Path

import click

from affnorm_zoo.cli.report import COUNT, reported_errors
from affnorm_zoo.config import load_config
from affnorm_zoo.studies.paper import EXPERIMENTS, load_paper_config, run_experiment, write_report

_path = click.Path(path_type=Path)


@click.command()
@click.argument("experiment", type=click.Choice([*EXPERIMENTS, "all", "report"]))
@click.argument("overrides", nargs=-1)
@click.option(
    "--configs", type=_path, default=Path("configs/paper"), show_default=True, help="One YAML per experiment."
)
@click.option("--output", type=_path, default=Path("runs/paper"), show_default=True, help="One folder per experiment.")
@click.option("--quick", is_flag=True, help="A few short runs.")
@click.option("--workers", type=COUNT, default=2, show_default=True, help="Processes, with one thread each.")
def reproduce(
    experiment: str, overrides: tuple[str, ...], configs: Path, output: Path, quick: bool, workers: int
) -> None:
    """Repeat the paper's experiments on the data that OVERRIDES name, such as data.path=PATH data.val_split=test.

    Without data.path they run on scikit-learn's digits. Finished runs in the output folder are kept, so an interrupted
    experiment can be resumed. `report` writes OUTPUT.md with tables, figures and verdicts.
    """
    with reported_errors():
        data = load_config(overrides=overrides).data
        for name in EXPERIMENTS if experiment == "all" else [experiment] if experiment != "report" else []:
            config = load_paper_config(configs / f"{name}.yaml", quick)
            run_experiment(name, config, data, output / name, workers)
        if experiment == "report":
            page = output.with_suffix(".md")
            write_report(output, configs, page, quick)
            click.echo(page)
