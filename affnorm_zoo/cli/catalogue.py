import fnmatch
from pathlib import Path

import click
import timm
import torch

from affnorm_zoo.cli.report import reported_errors
from affnorm_zoo.config import expand_home, is_folder
from affnorm_zoo.evaluation import check_export, check_model_name
from affnorm_zoo.evaluation.flops import count_flops
from affnorm_zoo.hub import list_pretrained, model_table
from affnorm_zoo.models import zoo_models
from affnorm_zoo.registry import get_normalizer, list_normalizers


@click.command("list")
@click.argument("pattern", default="*")
@click.option("--pretrained", is_flag=True, help="Only names with published weights, tags included.")
@click.option("--namespace", help="List what this user or organisation of the Hub has published instead.")
@click.option("--table", is_flag=True, help="Print the page docs/models.md.")
def list_models(pattern: str, pretrained: bool, namespace: str | None, table: bool) -> None:
    """Print the zoo's model names, or those that match PATTERN ('resnet50*')."""
    if table:
        click.echo(model_table(), nl=False)
        return
    with reported_errors():
        listed = pretrained or namespace is not None
        names = list_pretrained(pattern, namespace) if listed else fnmatch.filter(zoo_models(), pattern)
    for name in names:
        click.echo(name)


@click.command()
@click.argument("name")
def info(name: str) -> None:
    """Describe a model: its normaliser, size, cost and weights. NAME is a timm name or an export folder."""
    name = expand_home(name)
    with reported_errors():
        if is_folder(name):
            name = f"local-dir:{check_export(Path(name))}"
        else:
            check_model_name(name)
            name = name.split(".")[0]
        with torch.device("meta"):
            model = timm.create_model(name)
    cfg = model.pretrained_cfg
    architecture = cfg["architecture"]
    rows = {
        "parameters": f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M",
        "forward": f"{count_flops(model, cfg['input_size']) / 2e9:.2f} GMACs per image of {cfg['input_size'][-1]} px",
        "weights": ", ".join(list_pretrained(f"{architecture}.*")) or "none published",
    }
    for normalizer in sorted(list_normalizers(), key=len, reverse=True):
        if architecture.endswith("_" + normalizer):
            spec = get_normalizer(normalizer)
            rows["normaliser"] = f"{spec.name}: {spec.formula} ({spec.summary})"
            break
    for key, value in rows.items():
        click.echo(f"{key:<12}{value}")
