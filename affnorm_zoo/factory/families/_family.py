"""What one family of networks states about itself. Planning, binding and initialisation read it and ask no classes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True)
class Binding:
    """One slot of a model and what takes its place.

    All names are paths: in a rule from its module, otherwise from the model.

    Args:
        slot: where the norm stood.
        layers: the layers that are fused with it; none if the slot becomes an L2 norm of its own.
        activation: a module right behind the slot, which the layer may absorb. A slot that holds an activation needs
            none here.
        norm_first: the norm stands before its layers, which read it; otherwise behind its one layer.
        across_tokens: its layers mix tokens: what they read is one channel at all positions.
        unnormed: further layers of the same block that read no norm. They are bound as well.
        writer: of a norm that stands first, the layer whose output it alone reads, which may absorb its activation.
        layout: of the slot's input, ``"NCHW"``, ``"NHWC"`` or ``"NLC"``; a rule may leave it to its family, or to the
            slot if that has none.
        has_activation: the slot must hold an activation, because the block has none of its own.
        has_weight: timm asks the norm's weight for its device and dtype, so that what stays in its place has an empty
            one.
    """

    slot: str
    layers: tuple[str, ...] = ()
    activation: str | None = None
    norm_first: bool = False
    across_tokens: bool = False
    unnormed: tuple[str, ...] = ()
    writer: str | None = None
    layout: str = ""
    has_activation: bool = False
    has_weight: bool = False


@dataclass(frozen=True)
class Absorption:
    """An activation with nothing between it and a layer, which may take it over if it can.

    Args:
        activation: path of the activation module.
        layer: path of the layer.
        side: ``"output"`` if the activation follows the layer, ``"input"`` if the layer follows the activation.
    """

    activation: str
    layer: str
    side: str


Rule = Callable[..., Iterator[Binding | Absorption]]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of networks, stated once.

    Args:
        roots: model classes. Their subclasses count too, as these only add layers of other types.
        rules: what stands where in a module of exactly this type; a subclass may run its layers in another order.
            A rule names every slot that its module can hold. Those that hold something else are passed over.
        layout: of the slots, unless a rule says otherwise; empty if the slot itself knows it.
        branch_ends: the last layers of a residual branch, and the factor on their initial weights. A divergence-free
            branch cannot start at zero through its norm, which has no weight.
        pools: names of a root's max poolings that read what a bound layer saves.
        joined: the class that a bound block of some type takes on, with the same modules and the same function.
        is_residual: whether a block of ``branch_ends`` has a shortcut; without one it has no branch.
        prepare: what must change in a module of exactly this type, without a change of its function, before its layers
            are bound.
        queries_keys: the layers that make the queries and keys of an attention, and how many of their first output
            features those are; see :data:`affnorm_zoo.factory.init.QUERY_KEY_START`.
        gates: the layer of a module whose output multiplies another's; it starts by multiplying with about 1.
        patches: the layers of a root that embed patches; see :data:`affnorm_zoo.factory.init.TOKEN_START`.
        positions: the position embeddings of a root.
        start: arguments of ``init_bound_weights`` with which ``bind`` initialises a root.
    """

    roots: tuple[type[nn.Module], ...] = ()
    rules: Mapping[type[nn.Module], Rule]
    layout: str = ""
    branch_ends: Mapping[type[nn.Module], tuple[tuple[str, ...], float]] = field(default_factory=dict)
    pools: tuple[str, ...] = ()
    joined: Mapping[type[nn.Module], type[nn.Module]] = field(default_factory=dict)
    is_residual: Callable[..., bool] = lambda _: True
    prepare: Mapping[type[nn.Module], Callable[..., None]] = field(default_factory=dict)
    queries_keys: Mapping[type[nn.Module], Callable[..., list[tuple[nn.Module, int]]]] = field(default_factory=dict)
    gates: Mapping[type[nn.Module], str] = field(default_factory=dict)
    patches: Callable[..., list[nn.Module]] = lambda _: []
    positions: Callable[..., list[nn.Parameter]] = lambda _: []
    start: Mapping[str, bool] = field(default_factory=dict)

    def describe(self) -> str:
        """The family in messages and documents: its model classes, and their residual blocks in parentheses."""
        if not self.roots:
            return ", ".join(f"{kind.__module__.partition('.')[0]}'s {kind.__name__}" for kind in self.rules)
        blocks = ", ".join(dict.fromkeys(kind.__name__ for kind in self.branch_ends))
        roots = "/".join(root.__name__ for root in self.roots)
        return f"timm {roots} ({blocks})" if blocks else f"timm {roots}"


def is_identity(module: nn.Module) -> bool:
    """Whether nothing happens in ``module``: an activation beside it may be absorbed."""
    return isinstance(module, nn.Identity)


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks watch ``module`` or change its input or output."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)
