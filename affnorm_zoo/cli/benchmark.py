import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch

from affnorm_zoo.benchmarks.loop import measure_loop
from affnorm_zoo.benchmarks.networks import COMPILE_MODES, MIXED, OPAQUE, PRECISIONS, RECOMPUTED
from affnorm_zoo.benchmarks.overview import draw_overview
from affnorm_zoo.benchmarks.processes import measure_table
from affnorm_zoo.benchmarks.report import write_report
from affnorm_zoo.benchmarks.small_layers import LAYERS
from affnorm_zoo.cli.report import COUNT, fail, reported_errors, split_config
from affnorm_zoo.config import load_config
from affnorm_zoo.evidence.environment import describe_environment
from affnorm_zoo.runs.files import write_json

_RESNET = ("batchnorm", "patchnorm", "patchnorm_ws", "groupnorm", "none")
CONTENDERS = {
    "resnet50": [*_RESNET, "batchnorm, checkpointed", "in-place ABN"],
    "resnet18": [*_RESNET, "patchnorm_c", "batchnorm, checkpointed", "in-place ABN"],
    "vit_small_patch16_224": [
        "layernorm", "affinelike", "normlike", "affinelike" + MIXED, "affinelike" + RECOMPUTED, "rmsnorm", "dyt",
        "derf", "layernorm, checkpointed", "memory-sharing layer norm",
    ],
}  # fmt: skip
# eager training is all that is measured of the following: small layers, and one network each of other families
SMALL = {name: ["batchnorm", "patchnorm", "patchnorm_ws"] for name in LAYERS}
_CONVOLUTIONAL = ("efficientnet_b0", "mobilenetv3_large_100", "regnety_008", "resnetv2_50", "densenet121")
_TRANSFORMERS = (
    "convnext_tiny", "deit3_small_patch16_224", "eva02_tiny_patch14_224", "beit_base_patch16_224",
    "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "mixer_s32_224", "gmlp_s16_224",
)  # fmt: skip
FAMILIES = {
    **{name: ["batchnorm", "patchnorm", "patchnorm_ws"] for name in _CONVOLUTIONAL},
    **{name: ["layernorm", "affinelike", "normlike"] for name in _TRANSFORMERS},
    "resmlp_12_224": ["affine", "affinelike", "normlike"],
}
_MODELS = [*CONTENDERS, *FAMILIES, *SMALL]
_path = click.Path(path_type=Path)


@click.group()
def benchmark() -> None:
    """Time networks against each other, and write the page of results."""


@benchmark.command()
@click.option("--device", default="cpu", type=click.Choice(["cpu", "cuda"]), show_default=True)
@click.option("--model", "models", multiple=True, type=click.Choice(_MODELS), default=list(CONTENDERS))
@click.option("--families", is_flag=True, help="Measure eager training of one network of each other family instead.")
@click.option("--batch-size", default=8, show_default=True)
@click.option("--img-size", type=int, help="Pixels. Default: the network's own size.")
@click.option(
    "--precision", "--dtype", "precision", default="float32", type=click.Choice(list(PRECISIONS)), show_default=True
)
@click.option("--rounds", default=15, show_default=True, help="Steps of each network; one extra step is not counted.")
@click.option("--processes", type=COUNT, default=1, show_default=True, help="Split the rounds over new processes.")
@click.option("--no-compile", is_flag=True, help="Skip everything that takes minutes to compile.")
@click.option("--opaque", is_flag=True, help="Only compare layers that the compiler traces with opaque ones.")
@click.option("--compile-mode", default="default", type=click.Choice(COMPILE_MODES), show_default=True)
@click.option("--output", type=_path, required=True, help="JSON file.")
def measure(
    device: str,
    models: tuple[str, ...],
    families: bool,
    batch_size: int,
    img_size: int | None,
    precision: str,
    rounds: int,
    processes: int,
    no_compile: bool,
    opaque: bool,
    compile_mode: str,
    output: Path,
) -> None:
    """Measure time and memory. For all measurements on a GPU use gpu-evidence.

    In autotuning modes the compiler chooses, per matrix product, between the library's kernel and its own.
    """
    if rounds % processes:
        raise click.UsageError(f"--rounds must be a multiple of --processes, got {rounds} and {processes}")
    place = torch.device(device)
    results: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "environment": {**describe_environment(place), "threads": torch.get_num_threads(), **_limits()},
        "rows": [],
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    if place.type == "cuda":
        torch.backends.cudnn.benchmark = True  # of all contenders: the fastest algorithm for each shape
    failures = []
    for name in FAMILIES if families else models:
        bench = {
            "architecture": name, "batch_size": batch_size, "img_size": img_size, "device": place,
            "precision": precision, "rounds": rounds, "compile_mode": compile_mode,
        }  # fmt: skip
        for mode, contenders, compiled in _opaque_tables(name) if opaque else _tables(name, no_compile):
            try:
                rows = measure_table(bench, mode, contenders, compiled, processes)
            except Exception as error:  # whatever ends one table, the next is measured
                how = "opaque" if opaque else "compiled" if compiled else "eager"
                failures.append(f"{name}, {mode}, {how}: {type(error).__name__}: {error}")
                results["failures"] = failures
            else:
                results["rows"] += rows
                for row in rows:
                    click.echo(json.dumps(row))
            write_json(output, results)  # what is measured outlives a limit of time
    if failures:
        fail("\n".join(failures), 1)


def _limits() -> dict[str, str]:
    """What keeps the library from instructions that the processor has."""
    return {name: os.environ[name] for name in ("ONEDNN_MAX_CPU_ISA",) if name in os.environ}


Table = tuple[str, list[str], bool]  # mode, contenders, whether compiled


def _tables(architecture: str, no_compile: bool) -> Iterator[Table]:
    if architecture not in CONTENDERS:
        yield "train", (FAMILIES | SMALL)[architecture], False
        return
    contenders = CONTENDERS[architecture]
    for compiled in (False,) if no_compile else (False, True):
        for mode in ("train", "infer"):
            yield mode, contenders[:2] if compiled else contenders, compiled  # a compilation takes a minute


def _opaque_tables(architecture: str) -> Iterator[Table]:
    standard, ours = (CONTENDERS | FAMILIES)[architecture][:2]
    yield "train", [standard, ours, ours + OPAQUE], True


@benchmark.command()
@click.argument("config", nargs=-1)
@click.option("--rounds", default=10, show_default=True, help="Turns of each; one extra turn is not counted.")
@click.option("--updates", default=10, show_default=True, help="Updates per turn.")
@click.option("--output", type=_path, required=True, help="JSON file.")
def loop(config: tuple[str, ...], rounds: int, updates: int, output: Path) -> None:
    """Time the training loop of CONFIG against a bare step of its network, and the loaders against each other."""
    with reported_errors():
        results = measure_loop(load_config(*split_config(config)), rounds, updates)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, results)
    click.echo(output.read_text(encoding="utf-8"), nl=False)


@benchmark.command()
@click.option("--folder", type=_path, default=Path("docs/benchmarks"), show_default=True)
@click.option("--page", type=_path, default=Path("docs/performance.md"), show_default=True)
@click.option("--readme", type=_path, default=Path("README.md"), show_default=True)
def report(folder: Path, page: Path, readme: Path) -> None:
    """Write tables, figures and the README's lines on the GPU from the JSON files."""
    write_report(folder, page, readme)


@benchmark.command()
@click.option("--recipes", type=_path, default=Path("docs/recipes"), show_default=True)
@click.option("--benchmark", "measured", type=_path, default=Path("docs/benchmarks/cpu.json"), show_default=True)
@click.option("--output", type=_path, default=Path("docs/overview.png"), show_default=True)
def overview(recipes: Path, measured: Path, output: Path) -> None:
    """Draw the README's figure from the files of sweeps and of a benchmark."""
    draw_overview(recipes, measured, output)
