import json
import sys
from pathlib import Path

import click

from affnorm_zoo.cli.report import COUNT, OUTPUT_FILE, USAGE, as_line, reported_errors, split_config
from affnorm_zoo.config import load_config
from affnorm_zoo.data import open_source
from affnorm_zoo.errors import UsageError
from affnorm_zoo.evaluation import TASKS, evaluate_model, expand_names, write_results
from affnorm_zoo.training.processes import build_accelerator


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--batch-size", type=COUNT, default=128, show_default=True, help="Images per process.")
@click.option("--labels-by-position", is_flag=True, help="Match classes by position even if their names differ.")
@click.option("--results", type=OUTPUT_FILE, help="CSV file with timm's columns.")
def evaluate(models: tuple[str, ...], batch_size: int, labels_by_position: bool, results: Path | None) -> None:
    """Evaluate models on the validation split and print one line of JSON per model.

    MODELS are export folders, local-dir:PATH, hf-hub:ORG/NAME or timm names with weights, all with wildcards
    ('runs/*/export', 'resnet20_cifar_*'), mixed with overrides such as data.path=PATH data.val_split=test. Without
    data.path the images are scikit-learn's digits. A model that does not match the data is reported and skipped.
    """
    names, overrides = split_config(models)
    with reported_errors():
        by_position = ["data.labels_by_position=true"] if labels_by_position else []
        config = load_config(overrides=[*overrides, *by_position])
        accelerator = build_accelerator(config.runtime)
        source = open_source(config.data)
        chosen = expand_names(names)
    rows, failed = [], False
    for name in chosen:
        try:
            row = evaluate_model(name, config.data, source, accelerator, batch_size)
        except UsageError as error:
            failed = True
            if accelerator.is_main_process:
                click.echo(as_line(error), err=True)
            continue
        rows.append(row)
        if accelerator.is_main_process:
            click.echo(json.dumps(row))
    if results is not None and accelerator.is_main_process:
        write_results(rows, results, TASKS[config.data.task])
    accelerator.wait_for_everyone()  # a process that exits early can break the others' connections
    accelerator.end_training()
    if failed:
        sys.exit(USAGE)
