import difflib
import glob
from pathlib import Path
from typing import Any

import timm
from timm.models import parse_model_name
from torch import nn

from affnorm_zoo.data import Source
from affnorm_zoo.errors import UsageError


def check_model_name(name: str) -> None:
    """Raise UsageError, naming the nearest known models, unless timm knows ``name``."""
    if not timm.is_model(name.split(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        if "/" in name:
            hint = f": there is no such folder; a repository of the Hub is called hf-hub:{name}"
        raise UsageError(f"model {name!r} is not known to timm{hint}")


def load_model(name: str, **kwargs: Any) -> nn.Module:
    """Build a model with its weights.

    Args:
        name: a timm name with weights, ``hf-hub:org/name``, ``local-dir:PATH``, or the path of an export folder.
        kwargs: further arguments of :func:`timm.create_model`.

    Raises:
        UsageError: the name is unknown, the folder is no export, or there are no weights for it.
    """
    if Path(name).is_dir():
        name = f"local-dir:{name}"
    scheme, _ = parse_model_name(name) if ":" in name else ("", name)
    if scheme == "local-dir":
        folder = Path(name.removeprefix("local-dir:"))
        missing = [file for file in ("config.json", "model.safetensors") if not (folder / file).is_file()]
        if missing:
            raise UsageError(f"{folder} is not an export folder: it has no {' and no '.join(missing)}")
    elif not scheme:
        check_model_name(name)
    try:
        return timm.create_model(name, pretrained=True, **kwargs)
    except RuntimeError as error:
        raise UsageError(f"the weights of {name} could not be loaded: {' '.join(str(error).split())[:500]}") from error


def expand_names(patterns: list[str]) -> list[str]:
    """Replace wildcards: of paths by the folders there are, of timm names by those with weights.

    Raises:
        UsageError: nothing matches a pattern.
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


def check_fit(model: nn.Module, source: Source) -> None:
    """Raise UsageError unless the model's classes and channels are the data's."""
    if model.num_classes != len(source.class_names):
        raise UsageError(f"the model has {model.num_classes} classes, but {source.name} has {len(source.class_names)}")
    in_chans = model.pretrained_cfg["input_size"][0]
    if in_chans != source.in_chans:
        raise UsageError(f"the model takes {in_chans} channels, but the images of {source.name} have {source.in_chans}")
