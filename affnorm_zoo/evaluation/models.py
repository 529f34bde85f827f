import difflib
import glob
import json
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from timm.models import parse_model_name
from torch import Tensor, nn

from affnorm_zoo.config import expand_home, is_file, is_folder
from affnorm_zoo.data import Source
from affnorm_zoo.errors import UsageError
from affnorm_zoo.evaluation.labels import describe_difference


def check_model_name(name: str) -> None:
    """Raise UsageError, naming the nearest known models, unless timm knows ``name``."""
    if not timm.is_model(name.split(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        if "/" in name:
            hint = f": there is no such folder; for a repository of the Hub write hf-hub:{name}"
        raise UsageError(f"model {name!r} is not known to timm{hint}")


def load_model(name: str, **kwargs: Any) -> nn.Module:
    """Build a model and load its weights.

    Args:
        name: a timm name with weights, ``hf-hub:org/name``, ``local-dir:PATH``, or the path of an export folder.
        kwargs: further arguments of :func:`timm.create_model`.

    Raises:
        UsageError: the name is unknown, the folder is not an export, or it has no weights.
    """
    name = expand_home(name)
    if is_folder(name):
        name = f"local-dir:{name}"
    try:
        scheme, _ = parse_model_name(name) if ":" in name else ("", name)
    except ValueError as error:  # an unknown scheme, or nothing behind it
        raise UsageError(str(error)) from error
    if scheme == "local-dir":
        name = f"local-dir:{check_export(Path(expand_home(name.removeprefix('local-dir:'))))}"
    elif not scheme:
        check_model_name(name)
    try:
        return timm.create_model(name, pretrained=True, **kwargs)
    except Exception as error:  # from timm, the Hub's client, or a file with the wrong content
        raise UsageError(f"the weights of {name} could not be loaded: {' '.join(str(error).split())[:500]}") from error


def read_export(folder: Path) -> dict[str, Any]:
    """What an export folder says of its model: ``architecture``, ``model_args`` and more.

    Raises:
        UsageError: the folder is not an export, or its config.json does not describe a model.
    """
    path = check_export(folder) / CONFIG_NAME
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        described = {"model_args": {}, **described}
        is_model = isinstance(described["architecture"], str) and isinstance(described["model_args"], dict)
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path} does not describe a model: {type(error).__name__}: {error}") from error
    if not is_model:
        raise UsageError(f"{path} does not describe a model: architecture must be text and model_args a mapping")
    return described


def check_export(folder: Path) -> Path:
    """Return the folder; raises UsageError unless it is an export that timm loads."""
    missing = [file for file in (CONFIG_NAME, SAFETENSORS_SINGLE_FILE) if not is_file(folder / file)]
    if missing:
        raise UsageError(f"{folder} is not an export folder: it has no {' and no '.join(missing)}")
    return folder


def expand_names(patterns: list[str]) -> list[str]:
    """Expand wildcards: paths to existing folders, timm names to models with weights.

    Raises:
        UsageError: a pattern has no match.
    """
    names = []
    for pattern in patterns:
        if not any(character in pattern for character in "*?["):
            names.append(pattern)
            continue
        if "/" in pattern:
            found = sorted(glob.glob(pattern))  # noqa: PTH207 a pattern may be absolute
        else:
            found = timm.list_models(pattern, pretrained=True)
        if not found:
            where = "no folder" if "/" in pattern else "no timm model with weights"
            raise UsageError(f"{where} matches {pattern!r}")
        names += found
    return names


@torch.no_grad()
def check_classifier(name: str, model: nn.Module, input_size: tuple[int, ...], num_classes: int) -> None:
    """Check that a model classifies one black image.

    Raises:
        UsageError: the model does not take images of this size, or does not return one number per class.
    """
    was_training = model.training
    size = " x ".join(map(str, input_size))
    cfg: Any = model.pretrained_cfg
    try:
        logits = model.eval()(torch.zeros(1, *input_size, device=next(model.parameters()).device))
    except Exception as error:  # architectures raise errors of any type
        raise UsageError(
            f"{name} does not take images of {size}: {' '.join(str(error).split())[:300]}"
            + (f"; set model.kwargs.img_size={input_size[-1]}" * bool(cfg.get("fixed_input_size")))
        ) from error
    model.train(was_training)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (1, num_classes):
        raise UsageError(
            f"{name} is not a classifier of {num_classes} classes: for one image it returns {shape}; see model.kwargs"
        )


def check_fit(model: nn.Module, source: Source) -> None:
    """Raise UsageError unless the model's numbers of classes and channels are those of the data."""
    if model.num_classes != len(source.class_names):
        raise UsageError(
            f"the model has {model.num_classes} classes, but {source.name} has {len(source.class_names)}"
            + describe_difference(model, source)
        )
    cfg: Any = model.pretrained_cfg
    in_chans = cfg["input_size"][0]
    if in_chans != source.in_chans:
        raise UsageError(f"the model takes {in_chans} channels, but the images of {source.name} have {source.in_chans}")
