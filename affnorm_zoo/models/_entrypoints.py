"""What the model files share: checking their options, and one entry point per architecture and normaliser."""

import sys
from collections.abc import Callable
from typing import Any

import timm
from timm.models import register_model
from timm.models._input import update_model_args
from torch import nn

from affnorm_zoo.functional.scale import SCALE_NAMES, is_scale_name
from affnorm_zoo.models._weights import check_weights, tag_args
from affnorm_zoo.registry import NormalizerSpec


def check_norm_scale(norm_scale: str, spec: NormalizerSpec) -> None:
    """Raise ValueError unless the scale is known and the normaliser has one."""
    if not is_scale_name(norm_scale):
        raise ValueError(f"norm_scale must be one of {SCALE_NAMES}, got {norm_scale!r}")
    if norm_scale != "rms" and not spec.is_bound:
        raise ValueError(f"norm_scale is for divergence-free normalizers and does not apply to {spec.name!r}")


def register_entrypoint(module_name: str, name: str, doc: str, build: Callable[..., nn.Module]) -> None:
    """Make ``build(name, pretrained, **kwargs)`` the timm entry point ``name`` of a module.

    timm takes the name, the module and the pretrained configs from the function, so each one is made and placed in
    the module as if it had been written out. It raises ValueError for ``norm_layer``, which the name decides.
    """

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if "norm_layer" in kwargs:
            raise ValueError(
                f"norm_layer does not apply to {name!r}, whose name decides its norms: choose another name, or give "
                "norm_layer=affnorm_zoo.norm_layer(...) to timm's own architecture"
            )
        if pretrained:
            check_weights(name, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
        args = tag_args(name, kwargs.get("pretrained_cfg"))
        model = build(name, pretrained, **{**args, **kwargs})
        update_model_args(model, **args)  # else timm's own export would leave them out
        return model

    create.__name__ = create.__qualname__ = name
    create.__module__ = module_name
    create.__doc__ = doc
    setattr(sys.modules[module_name], name, create)
    register_model(create)


def zoo_models() -> list[str]:
    """Names of the models that this package has given timm."""
    package = __name__.partition(".")[0] + "."
    return [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith(package)]
