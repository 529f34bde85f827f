"""The name under which timm builds a converted network."""

from typing import Any

import timm
import torch
from timm.layers import LayerScale
from timm.models._input import get_model_args
from torch import Tensor, nn

from affnorm_zoo.conversion.stream import TRANSFORMERS
from affnorm_zoo.factory import bound_layers
from affnorm_zoo.functional.scale import is_scale_name
from affnorm_zoo.models import zoo_models
from affnorm_zoo.registry import list_normalizers

_CURRENT = ("in_chans", "num_classes", "global_pool")  # which timm reads off the model
_OF_THE_WEIGHTS = ("url", "file", "hf_hub_id", "hf_hub_filename", "source", "custom_load")


def name_twin(twin: nn.Module, normalizer: str, scale: str | tuple[float, float], unnormed: str) -> str:
    """Let the twin say under which architecture and arguments timm builds it, and return the name.

    timm's exports read both from the model. Nothing is written, and the name is empty, unless the model that timm
    builds has the twin's parameters and the same divergence-free layers.
    """
    cfg = getattr(twin, "pretrained_cfg", None)
    if not isinstance(cfg, dict) or "architecture" not in cfg or not is_scale_name(scale):
        return ""
    name = f"{_without_normalizer(cfg['architecture'])}_{normalizer}"
    if name not in zoo_models():
        return ""
    own: dict[str, Any] = {"norm_scale": scale}
    if isinstance(twin, TRANSFORMERS) and unnormed != "bind":
        own["unnormed"] = unnormed
    args = {**get_model_args(twin), **own}
    candidates = [args]
    if not any(isinstance(module, LayerScale) for module in twin.modules()):
        args.pop("init_values", None)  # folded
        candidates.append({**args, "init_values": 0.0})  # where the architecture has LayerScale of its own
    found = next((given for given in candidates if _describes(twin, name, given)), None)
    if found is None:
        return ""
    kept = {key: value for key, value in cfg.items() if key not in _OF_THE_WEIGHTS}
    setattr(twin, "pretrained_cfg", {**kept, "architecture": name, "tag": None})  # noqa: B010
    setattr(twin, "_model_args", {key: value for key, value in found.items() if key not in _CURRENT})  # noqa: B010
    if hasattr(twin, "normalizer"):
        setattr(twin, "normalizer", normalizer)  # noqa: B010 a module's attributes are typed as modules
    return name


def _describes(twin: nn.Module, name: str, args: dict[str, Any]) -> bool:
    """Whether timm builds the twin, its weights aside, from a name and arguments."""
    try:
        with torch.device("meta"):
            built = timm.create_model(name, **args)
    except (TypeError, ValueError, RuntimeError):  # an argument of timm's own model that the zoo's does not take
        return False
    return _description(built) == _description(twin)


def _without_normalizer(architecture: str) -> str:
    suffixes = [f"_{name}" for name in list_normalizers() if architecture.endswith(f"_{name}")]
    return architecture.removesuffix(max(suffixes, key=len, default=""))


def _description(model: nn.Module) -> tuple[dict[str, torch.Size], list[tuple[type, float, float, str]]]:
    def shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
        return {key: value.shape for key, value in state.items()}

    layers = [(type(layer), layer.c, layer.kappa, layer.extra_repr()) for layer in bound_layers(model)]
    return shapes(model.state_dict()), layers
