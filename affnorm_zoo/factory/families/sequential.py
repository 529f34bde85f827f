"""Modules that run their children in order: torch's Sequential, and the networks of ``features_only`` in timm.

A slot is paired with the convolution before it, or with the layer after it, which reads it.
"""

from collections.abc import Iterator

from timm.models import FeatureDictNet, FeatureHookNet, FeatureListNet
from torch import nn

from affnorm_zoo.factory.families._family import Binding, Family


def _in_order(parent: nn.Module) -> Iterator[Binding]:
    children = _children(parent)
    for before, here, after in zip([None, *children], children, [*children[1:], None], strict=False):
        name, last = _last_of(*before) if before is not None else ("", None)
        if isinstance(last, nn.Conv2d):
            yield Binding(here[0], (name,), after[0] if after is not None else None)
        elif after is not None and isinstance(after[1], nn.Linear | nn.Conv2d):
            yield Binding(here[0], (after[0],), norm_first=True)


def _children(parent: nn.Module) -> list[tuple[str, nn.Module]]:
    """What runs, in order; ``named_children`` leaves out where a module runs again, as one ReLU may."""
    return [(name, module) for name, module in parent._modules.items() if module is not None]


def _last_of(name: str, module: nn.Module) -> tuple[str, nn.Module]:
    """What runs last in a child, such as the convolution at the end of a deep stem."""
    while type(module) is nn.Sequential and len(module) > 0:
        last, module = _children(module)[-1]
        name = f"{name}.{last}"
    return name, module


FAMILY = Family(rules=dict.fromkeys((nn.Sequential, FeatureListNet, FeatureDictNet, FeatureHookNet), _in_order))
