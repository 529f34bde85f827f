from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from timm.layers import Conv2dSame
from torch import nn

from affnorm_zoo.factory.families import FAMILIES, Binding
from affnorm_zoo.factory.families._family import has_hooks
from affnorm_zoo.factory.init import family_of, init_bound_weights
from affnorm_zoo.factory.plan import plan_absorptions, plan_bindings
from affnorm_zoo.functional.activation import activation_name
from affnorm_zoo.layers import BoundLayer, L2Norm, L2Norm2d, LeanMaxPool2d, check_writable
from affnorm_zoo.registry import NormalizerSpec, get_normalizer, list_normalizers

Scale = str | tuple[float, float]
UNNORMED = ("bind", "plain")


def bind(
    model: nn.Module,
    *,
    scale: Scale = "rms",
    stem_scale: Scale | None = None,
    absorb: bool = True,
    unnormed: str = "bind",
    init: bool = True,
) -> list[Binding]:
    """Replace every slot of ``model``, in place, by the divergence-free layer it stands for.

    The network's family decides which layer that is: the convolution in front of the slot, or the linear layers or
    convolutions that read it. In a transformer block it also binds layers that read no norm. A slot with no layer
    becomes a parameter-free L2 norm of RMS 1 over the channels. The classifier stays as it is.

    Parameters keep their identity. A layer without a bias gets one: the norm would have had one, and a uniform factor
    needs it. A normaliser that is not made for a layer leaves it to its partner, if it has one. A layer takes over the
    activation beside it where it can. Otherwise the norm's own activation stays a module in the slot's place.

    timm's own ``init_weights`` of a bound model does not know the layers: call :func:`init_bound_weights` after it.

    Args:
        model: a network built with ``norm_layer=affnorm_zoo.norm_layer(name)``, or given slots by
            :func:`affnorm_zoo.slot_norms`.
        scale: ``"rms"``, ``"unit"`` or a pair (c, κ); see :func:`affnorm_zoo.functional.resolve_scale`.
        stem_scale: scale of the first bound layer, if it differs.
        absorb: take activations into the layers, and let blocks and poolings of the family save less. With False, every
            activation stays a module of its own, to be hooked or replaced: the same function, more memory.
        unnormed: what happens to the layers of a block that read no norm: ``"bind"``, or ``"plain"`` to keep them.
        init: initialise the bound layers, by :func:`init_bound_weights`, as suits the family.

    Returns:
        What was bound: one entry per slot, in the order of the model's modules.

    Raises:
        ValueError: ``unnormed`` is unknown, there is no slot, a slot cannot be paired with a layer, the channel counts
            differ, the normaliser is not made for such layers, or a layer has hooks or a weight computed from
            others, which would be lost. The model is then unchanged.
    """
    if unnormed not in UNNORMED:
        raise ValueError(f"unnormed must be {' or '.join(map(repr, UNNORMED))}, got {unnormed!r}")
    bindings = plan_bindings(model)
    if unnormed == "plain":
        bindings = [replace(binding, unnormed=()) for binding in bindings]
    for binding in bindings:
        _check(model, binding)
    prepare_layers(model)
    taken = _absorbed(model, bindings) if absorb else {}
    for index, binding in enumerate(bindings):
        spec = model.get_submodule(binding.slot).spec
        own_scale = stem_scale if index == 0 and stem_scale is not None else scale
        for name in binding.layers:
            _place(model, name, _bound(model.get_submodule(name), spec, own_scale, taken.get(name, {})))
        for name in binding.unnormed:
            _place(model, name, _bound(model.get_submodule(name), spec, scale, taken.get(name, {})))
        _place(model, binding.slot, _remainder(model, binding))
    if absorb:
        _join_blocks(model)
        _lighten_pools(model)
    if init:
        family = family_of(model)
        init_bound_weights(model, **(family.start if family else {}))
    return bindings


def _check(model: nn.Module, binding: Binding) -> None:
    slot: Any = model.get_submodule(binding.slot)
    for name in (binding.slot, *binding.layers, *binding.unnormed):
        module = model.get_submodule(name)
        if module is not slot:
            check_writable(module)
        if has_hooks(module):
            raise ValueError(f"{name!r} has hooks, which what takes its place would not have: register them afterwards")
        if module is not slot and _serving(slot.spec, module) is None:
            doors = {"Conv2d": slot.spec.conv, "Conv2dSame": slot.spec.conv_same, "Linear": slot.spec.linear}
            others = [other for other in list_normalizers() if _door(get_normalizer(other), module) is not None]
            remedy = f"; for this model use one of {', '.join(others)}" if others else ""
            raise ValueError(
                f"slot {binding.slot!r}: {slot.normalizer!r} fuses with "
                f"{' or '.join(kind for kind, door in doors.items() if door is not None)}, "
                f"but {name!r} is a {type(module).__name__}{remedy}"
            )
    side = "in" if binding.norm_first else "out"
    for name in () if binding.across_tokens else binding.layers:
        layer = model.get_submodule(name)
        unit = "features" if isinstance(layer, nn.Linear) else "channels"
        channels = getattr(layer, f"{side}_{unit}")
        if channels != slot.num_channels:
            raise ValueError(
                f"slot {binding.slot!r} has {slot.num_channels} channels, but {name!r} has {channels} {side}put {unit}"
            )


def _door(spec: NormalizerSpec, layer: nn.Module) -> type[BoundLayer] | None:
    """What the normaliser puts in the place of such a layer."""
    # exact types: the forward of a subclass would be lost
    return {nn.Conv2d: spec.conv, Conv2dSame: spec.conv_same, nn.Linear: spec.linear}.get(type(layer))


def _serving(spec: NormalizerSpec, layer: nn.Module) -> NormalizerSpec | None:
    """The normaliser that is made for such a layer: the slot's own, otherwise its partner."""
    partners = [get_normalizer(spec.partner)] if spec.partner else []
    return next((served for served in (spec, *partners) if _door(served, layer) is not None), None)


def prepare_layers(model: nn.Module) -> None:
    """Change in place what layers need before they are bound; see :attr:`Family.prepare`. The function stays."""
    for module in model.modules():
        for family in FAMILIES:
            if type(module) in family.prepare:
                family.prepare[type(module)](module)


def _absorbed(model: nn.Module, bindings: list[Binding]) -> dict[str, dict[str, str]]:
    """Replace the activations that layers can take over by identities; the arguments for each such layer."""
    specs = {
        name: model.get_submodule(binding.slot).spec
        for binding in bindings
        for name in (*binding.layers, *binding.unnormed)
    }
    taken: dict[str, dict[str, str]] = {}
    for absorption in plan_absorptions(model, bindings):
        module = model.get_submodule(absorption.activation)
        name = activation_name(module)
        door, _ = _door_and_options(specs[absorption.layer], model.get_submodule(absorption.layer))
        is_input = absorption.side == "input"
        known = door.input_activations if is_input else door.output_activations
        if name in known and not has_hooks(module):
            _place(model, absorption.activation, nn.Identity())
            taken.setdefault(absorption.layer, {})["input_activation" if is_input else "activation"] = name
    return taken


def _bound(layer: nn.Module, spec: NormalizerSpec, scale: Scale, activations: Mapping[str, str]) -> nn.Module:
    door, options = _door_and_options(spec, layer)
    return door.replacing(layer, scale=scale, **activations, **options)


def _door_and_options(spec: NormalizerSpec, layer: nn.Module) -> tuple[type[BoundLayer], Mapping[str, Any]]:
    serving = _serving(spec, layer)
    door = None if serving is None else _door(serving, layer)
    assert serving is not None, "checked before anything was changed"
    assert door is not None
    return door, serving.options


def _remainder(model: nn.Module, binding: Binding) -> nn.Module:
    """What stays in the place of a slot: an L2 norm if there is no layer, and what the norm held beside itself."""
    slot: Any = model.get_submodule(binding.slot)
    parts: list[nn.Module] = []
    act: Any = slot.act
    if not binding.layers:
        parts.append((L2Norm2d if binding.layout == "NCHW" else L2Norm)(slot.num_channels, scale="rms"))
    elif binding.norm_first and hasattr(act, "inplace"):
        act.inplace = False  # it now reads the residual stream itself, where the norm had made a tensor of its own
    parts += [part for part in (slot.drop, act) if not isinstance(part, nn.Identity)]
    if not parts:
        identity = nn.Identity()
        if binding.has_weight:
            layer: Any = model.get_submodule(binding.layers[0])
            identity.register_buffer("weight", layer.weight.new_empty(0), persistent=False)
        return identity
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)


def _join_blocks(model: nn.Module) -> None:
    """Let residual blocks compute their end as one op."""
    joined = {kind: other for family in FAMILIES for kind, other in family.joined.items()}
    for module in model.modules():
        if type(module) in joined:
            module.__class__ = joined[type(module)]


def _lighten_pools(model: nn.Module) -> None:
    """Let max poolings behind a layer that saves its output save nothing of their own."""
    for family in FAMILIES:
        for module in [m for m in model.modules() if isinstance(m, family.roots)]:
            for name in family.pools:
                pool = getattr(module, name)
                if type(pool) is nn.MaxPool2d and not has_hooks(pool):
                    _place(module, name, LeanMaxPool2d(pool))


def _place(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place, and into the mode, of the submodule ``name``."""
    model.set_submodule(name, module.train(model.get_submodule(name).training))
