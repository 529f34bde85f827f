"""Weights that travel with the package: ``affnorm_zoo/weights/<model>.<tag>/``, one folder a release.

timm finds them through ``file`` in the pretrained config. A folder is what ``affnorm_zoo.hub.bundle`` has made.
"""

import json
from pathlib import Path
from typing import Any

import timm
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from timm.models import resolve_pretrained_cfg

WEIGHTS_FOLDER = Path(__file__).parents[1] / "weights"
MANIFEST_FILE = "manifest.json"  # of a release: its files, their sizes and hashes, and facts of the weights
_OF_THE_DATA = ("num_classes", "input_size", "mean", "std", "crop_pct", "interpolation")


def pretrained_cfgs(name: str, cfg: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The pretrained configs of a model by name and tag: those of its weights here, else ``cfg`` as ``untrained``.

    timm takes the first one for a name without a tag. That is the most accurate one of those that need no arguments.
    """
    folders = sorted(WEIGHTS_FOLDER.glob(f"{name}.*"), key=_rank)
    found = {folder.name: {**cfg, **_cfg_of(folder)} for folder in folders}
    return found or {f"{name}.untrained": cfg}


def _rank(folder: Path) -> tuple[bool, float]:
    manifest = _manifest(folder)
    return bool(manifest["model_args"]), -manifest["evaluation"]["top1"]


def _manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))


def _cfg_of(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    own = {key: config["pretrained_cfg"][key] for key in _OF_THE_DATA}
    own = {key: tuple(value) if isinstance(value, list) else value for key, value in own.items()}
    return {**own, "label_names": tuple(config["label_names"]), "file": str(folder / SAFETENSORS_SINGLE_FILE)}


def tag_args(name: str, pretrained_cfg: Any = None) -> dict[str, Any]:
    """Constructor arguments that the weights of a tag were trained with, beyond what the model's name says.

    Args:
        name: of the model, without the tag.
        pretrained_cfg: the tag, or nothing for the name's first; a whole config is one of other weights, and has none.
    """
    if not isinstance(pretrained_cfg, str | None):
        return {}
    tag = resolve_pretrained_cfg(name, pretrained_cfg=pretrained_cfg).tag
    folder = WEIGHTS_FOLDER / f"{name}.{tag}"
    return _manifest(folder)["model_args"] if folder.is_dir() else {}


def check_weights(name: str, pretrained_cfg: Any = None, pretrained_cfg_overlay: dict[str, Any] | None = None) -> None:
    """Raise RuntimeError, as timm does, if there are no weights; the message names those that exist.

    Args:
        name: of the model.
        pretrained_cfg, pretrained_cfg_overlay: as the entry point was given them.
    """
    cfg = resolve_pretrained_cfg(name, pretrained_cfg=pretrained_cfg, pretrained_cfg_overlay=pretrained_cfg_overlay)
    if cfg.has_weights or cfg.state_dict or cfg.source:
        return
    others = [tag for tag in timm.list_models(pretrained=True) if (WEIGHTS_FOLDER / tag).is_dir()]
    raise RuntimeError(
        f"there are no pretrained weights for {name}: build it with pretrained=False, load a published model as "
        f"hf-hub:ORG/NAME, or choose one of {', '.join(others) or 'none yet'}"
    )
