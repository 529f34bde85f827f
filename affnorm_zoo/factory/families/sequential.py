"""torch's Sequential: a convolution and its slot, or a slot and the linear layer that reads it, next to each other."""

from collections.abc import Iterator

from torch import nn

from affnorm_zoo.factory.families._family import Binding, Family


def _sequential(parent: nn.Sequential) -> Iterator[Binding]:
    children = list(parent.named_children())
    for before, here, after in zip([None, *children], children, [*children[1:], None], strict=False):
        if before is not None and isinstance(before[1], nn.Conv2d):
            yield Binding(here[0], (before[0],), after[0] if after is not None else None)
        elif after is not None and isinstance(after[1], nn.Linear):
            yield Binding(here[0], (after[0],), norm_first=True)


FAMILY = Family(rules={nn.Sequential: _sequential})
