import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import torch
from PIL import Image

from affnorm_zoo.benchmarks.gpu_evidence.carry import WARN_MIB, WHEELS, join_volumes, pack, write_volumes
from affnorm_zoo.benchmarks.gpu_evidence.record import LEFT_OUT, OK, StepRecord
from affnorm_zoo.benchmarks.gpu_evidence.runner import Outcome, run_steps
from affnorm_zoo.benchmarks.gpu_evidence.sizes import GPU, REHEARSAL
from affnorm_zoo.benchmarks.gpu_evidence.steps import STEPS, Place, get_step
from affnorm_zoo.cli.report import fail, reported_errors

_path = click.Path(path_type=Path)
_ON_GPU = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # deterministic products need it
_REHEARSED = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
_RESULTS = Path("docs/benchmarks/gpu")
_SIDE_BY_SIDE = 12  # steps that time nothing


@click.group(invoke_without_command=True)
@click.option("--output", type=_path, help=f"Folder of results. Default: {_RESULTS}; a rehearsal keeps none.")
@click.option("--carried", type=_path, help="Folder made by `pack`; training steps need it.")
@click.option("--budget", type=float, metavar="SECONDS", help="Skip steps that no longer fit. Default: no limit.")
@click.option("--volumes", type=_path, help="After each step, pack all results into a few files of limited size here.")
@click.option("--rehearse", is_flag=True, help="Run every step in miniature on the CPU.")
@click.option("--retry", is_flag=True, help="Repeat steps that failed or took too long.")
@click.option("--only", multiple=True, type=click.Choice([step.name for step in STEPS]), help="Run only these steps.")
@click.pass_context
def gpu_evidence(
    context: click.Context,
    output: Path | None,
    carried: Path | None,
    budget: float | None,
    volumes: Path | None,
    rehearse: bool,
    retry: bool,
    only: tuple[str, ...],
) -> None:
    """Check the kernels, measure speed and memory, and train, on this machine's GPU.

    Each step is a separate process with a time limit and a result file. After a failure the next step starts. Called
    again, the command runs the unfinished steps. The most valuable steps come first.
    """
    if context.invoked_subcommand:
        return
    if not (rehearse or torch.cuda.is_available()):
        fail("error: torch sees no GPU here: --rehearse runs every step in miniature on the CPU", 2)
    with reported_errors(), TemporaryDirectory() as scratch:
        output = output or (Path(scratch) if rehearse else _RESULTS)
        if rehearse and carried is None:
            carried = output / "carried"
            pack(carried, _draw_datasets(output / "pictures"), wheels=())
        arguments = ["--output", str(output), *(["--rehearse"] if rehearse else [])]
        arguments += [] if carried is None else ["--carried", str(carried)]
        steps = [step for step in STEPS if not only or step.name in only]
        outcomes = run_steps(
            [replace(step, alone=False) for step in steps] if rehearse else steps,  # a rehearsal times nothing
            output,
            lambda name: [sys.executable, "-m", "affnorm_zoo.cli", "gpu-evidence", "step", name, *arguments],
            budget=budget,
            retry=retry,
            environment=_REHEARSED if rehearse else _ON_GPU,
            after_each=lambda: None if volumes is None else write_volumes(output, volumes),
            jobs=2 if rehearse else _SIDE_BY_SIDE,
        )
        statuses = [_tell(outcome) for outcome in outcomes]
    sys.exit(0 if set(statuses) <= {OK, LEFT_OUT} else 1)


def _tell(outcome: Outcome) -> str:
    """Print one line when a step ends, and return its status."""
    click.echo(f"{outcome.name:<28} {outcome.status:<10} {outcome.seconds:6.1f} s  {outcome.remark}".rstrip())
    return outcome.status


def _draw_datasets(folder: Path) -> dict[str, Path]:
    """Draw small images of noise to replace both data sets."""
    generator = np.random.default_rng(0)
    for split in ("train", "test", "val"):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True, exist_ok=True)
            for number in range(8):
                pixels = generator.integers(256, size=(32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{number}.png")
    return {"cifar10": folder, "cifar100": folder}


@gpu_evidence.command(hidden=True)
@click.argument("name")
@click.option("--output", type=_path, required=True)
@click.option("--carried", type=_path)
@click.option("--rehearse", is_flag=True)
def step(name: str, output: Path, carried: Path | None, rehearse: bool) -> None:
    """Run one step in this process."""
    record = StepRecord(output / f"{name}.json", torch.device("cpu" if rehearse else "cuda"))
    get_step(name).measure(record, REHEARSAL if rehearse else GPU, Place(carried, output))
    record.finish()


@gpu_evidence.command("list")
def list_steps() -> None:
    """Print the steps in order, with their expected seconds."""
    for step in STEPS:
        click.echo(f"{step.name:<28} {step.seconds:4.0f} s  {step.about}")


@gpu_evidence.command("pack")
@click.option("--output", type=_path, required=True, help="The folder to create.")
@click.option("--data", "datasets", multiple=True, metavar="NAME=PATH", help="cifar10=FOLDER or cifar100=FOLDER.")
@click.option("--wheel", "wheels", multiple=True, default=WHEELS, show_default=True, help="Package to include.")
def pack_command(output: Path, datasets: tuple[str, ...], wheels: tuple[str, ...]) -> None:
    """Pack what a bare GPU machine lacks: wheels, data, and run.sh, the command to run there."""
    named = {name: Path(path) for name, _, path in (item.partition("=") for item in datasets)}
    with reported_errors():
        mib = pack(output, named, wheels)
    click.echo(f"{mib:.1f} MiB in {output}, {_tree_mib():.1f} MiB in the repository")
    if mib + _tree_mib() > WARN_MIB:
        click.echo(f"warning: more than {WARN_MIB} MiB together: pack one data set per folder", err=True)


def _tree_mib() -> float:
    """Size of the tracked files."""
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=False).stdout
    files = (Path(name) for name in listed.split("\0") if name)
    return sum(file.stat().st_size for file in files if file.is_file()) / 2**20


@gpu_evidence.command()
@click.argument("source", type=_path)
@click.option("--output", type=_path, default=_RESULTS, show_default=True)
@click.option("--recipes", type=_path, default=Path("docs/recipes"), show_default=True, help="Sweeps' result files.")
def adopt(source: Path, output: Path, recipes: Path) -> None:
    """Unpack the volumes in SOURCE, copied from a GPU machine."""
    with reported_errors():
        join_volumes(source, output)
        for folder in sorted(output.glob("sweeps/*")):
            shutil.copytree(folder / "results", recipes / folder.name / "results", dirs_exist_ok=True)
    click.echo("now run: python scripts/benchmark.py report && python scripts/recipes.py")
