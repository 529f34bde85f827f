"""Runs of one recipe with several seeds -> the folder of weights that travels with the package."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from huggingface_hub.constants import EVAL_RESULTS_FOLDER
from safetensors.torch import load_file, save_file
from timm.models import split_model_name_tag

from affnorm_zoo.data import open_source
from affnorm_zoo.errors import UsageError
from affnorm_zoo.evaluation import evaluate_model
from affnorm_zoo.hub.card import say_half
from affnorm_zoo.hub.export import score_of
from affnorm_zoo.hub.release import (
    GOLDEN_FILE,
    build_release,
    golden_tensors,
    load_folder,
    write_manifest,
)
from affnorm_zoo.models import WEIGHTS_FOLDER, tag_args
from affnorm_zoo.runs.layout import METRICS_FILE, WEIGHTS_FILE
from affnorm_zoo.runs.record import read_config

MAX_BYTES = 2**21  # of a weight file in the package
LARGEST_LOSS = 0.003  # of top-1, for storing the weights in half precision and evaluating them in single


def bundle(runs: Sequence[Path], tag: str, *, half: bool = False, folder: Path = WEIGHTS_FOLDER) -> Path:
    """Put the median run's release among the package's weights, as ``<model>.<tag>``.

    The tag also stands for the model's arguments: timm builds the tagged model with those of the run.

    The stored weights are evaluated again, in float32, on the run's own validation split; that is the
    ``evaluation`` in the manifest, beside the scores of all seeds.

    Args:
        runs: finished run folders that differ only in their seed.
        tag: data and recipe, such as ``c10_e100``.
        half: store the weights in float16.
        folder: where the weights go.

    Returns:
        The folder of the release.

    Raises:
        UsageError: a run is not finished, they differ in more than their seed, the file is too large, or its accuracy
            is not the run's.
    """
    ordered = sorted(runs, key=score_of)
    median = ordered.pop(len(ordered) // 2)
    config = read_config(median)
    if config.data.task != "classification":
        raise UsageError(
            f"the package's weights are scored by top-1, which data.task={config.data.task} does not measure"
        )
    architecture, start_tag = split_model_name_tag(config.model.name)
    name = f"{architecture}.{tag}"
    release = build_release(median, ordered, load_as=name)
    (release / METRICS_FILE).unlink()
    shutil.rmtree(release / EVAL_RESULTS_FOLDER, ignore_errors=True)  # for the Hub's pages only
    if half:
        tensors = load_file(release / WEIGHTS_FILE)
        halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        save_file(halved, release / WEIGHTS_FILE, metadata={"format": "pt"})
        save_file(golden_tensors(load_folder(release)), release / GOLDEN_FILE)
        say_half(release / "README.md")
    size = (release / WEIGHTS_FILE).stat().st_size
    if size > MAX_BYTES:
        raise UsageError(f"{WEIGHTS_FILE} has {size:,} bytes, more than {MAX_BYTES:,}: store it in half precision")
    data = replace(config.data, hold_out=0)
    found = evaluate_model(str(release), data, open_source(data), Accelerator(cpu=True), batch_size=256)
    found["model"] = name
    if abs(found["top1"] - score_of(median)) > LARGEST_LOSS:
        raise UsageError(f"the stored weights have a top-1 of {found['top1']}, the run {score_of(median)}")
    write_manifest(
        release,
        model_args={**tag_args(architecture, start_tag), **config.model.kwargs},
        scores=[score_of(run) for run in (median, *ordered)],
        evaluation=found,
        note=data.note,
    )
    target = folder / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(release, target)
    return target
