"""Register our layers with loaded flop counters, which look a layer up by its exact type."""

import sys

from torch import nn

# module -> its table of handlers by type
_TABLES = {"thop.profile": "register_hooks", "ptflops.pytorch_ops": "MODULES_MAPPING"}


def count_as(kind: type[nn.Module], like: type[nn.Module]) -> None:
    """Let thop and ptflops, if either is loaded, count a layer of type ``kind`` by their rule for ``like``.

    As in torch's own counter, products count and the passes of the quotient do not.
    """
    for module, table in _TABLES.items():
        handlers = getattr(sys.modules.get(module), table, {})
        if like in handlers:
            handlers.setdefault(kind, handlers[like])
