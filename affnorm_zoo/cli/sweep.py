from dataclasses import replace
from pathlib import Path

import click

from affnorm_zoo.cli.report import USER_PATH, reported_errors
from affnorm_zoo.studies.sweep import load_sweep, run_sweep
from affnorm_zoo.studies.sweep_report import sweep_table


@click.command()
@click.argument("sweep", type=USER_PATH)
@click.argument("overrides", nargs=-1)
@click.option("--output", type=USER_PATH, help="Folder. Default: runs/sweeps/NAME.")
@click.option("--seeds", type=click.IntRange(min=1), help="Final runs of each method. Default: as many as SWEEP says.")
@click.option("--table", is_flag=True, help="Only print the results so far.")
def sweep(sweep: Path, overrides: tuple[str, ...], output: Path | None, seeds: int | None, table: bool) -> None:
    """Compare the methods (`arms`) of SWEEP, a YAML file, each with the same tuning and the same seeds.

    Finished runs are not repeated, and interrupted runs are resumed: repeat the command. Start it several times at once
    to share the runs. OVERRIDES, such as data.path=PATH, apply to all runs.
    """
    folder = output or Path("runs/sweeps") / sweep.stem
    with reported_errors():
        config = load_sweep(sweep)
        config = config if seeds is None else replace(config, seeds=seeds)
        if not table:
            run_sweep(config, folder, overrides)
        click.echo(sweep_table(config, folder), nl=False)
