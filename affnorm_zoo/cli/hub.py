from pathlib import Path

import click
from huggingface_hub.constants import EVAL_RESULTS_FOLDER

from affnorm_zoo.cli.report import USER_PATH, reported_errors
from affnorm_zoo.hub import load, publish
from affnorm_zoo.hub import pull as pull_files
from affnorm_zoo.hub.client import OVERALL_SECONDS

_timeout = click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=OVERALL_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="Time limit for the exchange with the Hub.",
)


@click.command()
@click.argument("run", type=USER_PATH)
@click.option("--repo-id", required=True, metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Create the repository as private (if it does not exist).")
@click.option("--revision", default="main", show_default=True, help="Branch.")
@click.option("--tag", help="A name for this version.")
@click.option(
    "--seed-run",
    "seeds",
    multiple=True,
    type=USER_PATH,
    metavar="RUN",
    help="A run of the same config with another seed, for mean and standard deviation on the card; may be repeated.",
)
@click.option("--dry-run", is_flag=True, help="Build and check the files, but send nothing.")
@_timeout
def push(
    run: Path,
    repo_id: str,
    private: bool,
    revision: str,
    tag: str | None,
    seeds: tuple[Path, ...],
    dry_run: bool,
    timeout: float,
) -> None:
    """Publish a finished RUN on the Hugging Face Hub, in one commit that is then read back.

    The token comes from HF_TOKEN or `hf auth login`. After a failure repeat the command.
    """
    with reported_errors():
        published = publish(
            run, repo_id, private=private, revision=revision, tag=tag, dry_run=dry_run, seeds=seeds, timeout=timeout
        )
    if not any(name.startswith(f"{EVAL_RESULTS_FOLDER}/") for name in published.files):
        click.echo(f"no {EVAL_RESULTS_FOLDER}: data.hub_id does not name the data on the Hub, or data.hold_out is set")
    for name, size in published.files.items():
        click.echo(f"{size:>12,}  {name}")
    if published.commit is None:
        click.echo(f"{run / 'release'} would be sent to {repo_id}")
    else:
        click.echo(f'affnorm_zoo.load("{repo_id}", revision="{tag or published.commit}")')


@click.command()
@click.argument("repo_id", metavar="ORG/NAME")
@click.option("--revision", help="Commit, tag or branch.")
@click.option("--verify", is_flag=True, help="Also compare the model's outputs with the published ones.")
@_timeout
def pull(repo_id: str, revision: str | None, verify: bool, timeout: float) -> None:
    """Download a published model, check it, and print its folder."""
    with reported_errors():
        folder = pull_files(repo_id, revision=revision, timeout=timeout)
        if verify:
            load(repo_id, revision=folder.name, verify=True, timeout=timeout)
    click.echo(folder)
