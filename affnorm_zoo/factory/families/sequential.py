"""torch's Sequential: a convolution and its slot, or a slot and the linear layer that reads it, next to each other.

timm's wrappers for ``features_only=True`` are such a sequence too, of a network's children.
"""

from collections.abc import Iterator

from timm.models import FeatureDictNet, FeatureListNet
from torch import nn

from affnorm_zoo.factory.families._family import Binding, Family


def _sequential(parent: nn.Sequential) -> Iterator[Binding]:
    children = list(parent.named_children())
    for before, here, after in zip([None, *children], children, [*children[1:], None], strict=False):
        conv = None if before is None else _last(*before)
        if conv is not None:
            yield Binding(here[0], (conv,), after[0] if after is not None else None)
        elif after is not None and isinstance(after[1], nn.Linear):
            yield Binding(here[0], (after[0],), norm_first=True)


def _last(name: str, module: nn.Module) -> str | None:
    """The convolution whose output is the module's: itself, or the last one of a deep stem."""
    if isinstance(module, nn.Sequential) and len(module) > 0:
        name, module = f"{name}.{len(module) - 1}", module[-1]
    return name if isinstance(module, nn.Conv2d) else None


FAMILY = Family(rules=dict.fromkeys((nn.Sequential, FeatureListNet, FeatureDictNet), _sequential))
