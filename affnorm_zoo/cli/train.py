from datetime import datetime
from pathlib import Path

import click
from accelerate import PartialState

from affnorm_zoo.cli.report import USER_PATH, reported_errors, split_config
from affnorm_zoo.config import config_to_yaml, load_config
from affnorm_zoo.evaluation import TASKS
from affnorm_zoo.hub import export_run
from affnorm_zoo.training import dry_run as estimate
from affnorm_zoo.training import train as train_model


@click.command()
@click.argument("config", nargs=-1)
@click.option("--output", type=USER_PATH, help="Run folder. Default: runs/DATE-TIME.")
@click.option(
    "--resume",
    default="none",
    metavar="auto|none|PATH",
    help="auto: resume from the newest checkpoint in --output, if any. PATH: resume from this checkpoint.",
)
@click.option("--overwrite", is_flag=True, help="Empty the output folder if it is already in use.")
@click.option("--allow-changes", is_flag=True, help="Resume even if settings that decide the result differ.")
@click.option("--dry-run", is_flag=True, help="Check everything, take one step, print the cost, write nothing.")
@click.option("--print-config", is_flag=True, help="Print the merged config and stop.")
def train(
    config: tuple[str, ...],
    output: Path | None,
    resume: str,
    overwrite: bool,
    allow_changes: bool,
    dry_run: bool,
    print_config: bool,
) -> None:
    """Train one model, then export it.

    CONFIG are YAML files, of which later ones win, and overrides such as optim.lr=0.2. Without any, a small PatchNorm
    network learns scikit-learn's handwritten digits. For several processes put `accelerate launch`
    before the script.
    """
    output = output or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    with reported_errors():
        merged = load_config(*split_config(config))
        if print_config:
            click.echo(config_to_yaml(merged), nl=False)
            return
        if dry_run:
            cost = estimate(merged)
            if PartialState().is_main_process:
                click.echo(cost.as_text())
            return
        report = train_model(merged, output, resume=resume, overwrite=overwrite, allow_changes=allow_changes)
        if PartialState().is_main_process:
            export = export_run(output)
            weights = "ema" if "ema" in report else "val"
            score = TASKS[merged.data.task].score
            name = f"{score.name} of the averaged weights" if weights == "ema" else score.name
            number = score.show(report[weights][score.key])
            click.echo(f"{name} {number} of {report['val']['num_images']} held-out images")
            click.echo(f'timm.create_model("local-dir:{export}", pretrained=True)')
        PartialState().wait_for_everyone()  # a process that exits early can break the others' connections
        PartialState().destroy_process_group()
