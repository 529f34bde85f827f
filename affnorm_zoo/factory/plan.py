"""Which layer every slot belongs to, read off the architecture before anything is changed."""

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from affnorm_zoo.factory.families import FAMILIES, Absorption, Binding, Family, supported
from affnorm_zoo.factory.slot import NormSlot


def plan_bindings(model: nn.Module) -> list[Binding]:
    """Pair every slot of ``model`` with its layers.

    Raises:
        ValueError: a slot is in a module that no rule covers, it lacks an activation, or the model has no slot.
    """
    slots = {name: module for name, module in model.named_modules() if isinstance(module, NormSlot)}
    if not slots:
        raise ValueError(
            "the model has no slot to bind: build it with norm_layer=affnorm_zoo.norm_layer(name), "
            "for a divergence-free normalizer"
        )
    bindings: dict[str, Binding] = {}
    for binding in candidate_bindings(model):
        if binding.slot not in slots:
            continue
        if binding.slot in bindings:
            raise ValueError(
                f"slot {binding.slot!r} is claimed twice, for {bindings[binding.slot].layers} and {binding.layers}"
            )
        bindings[binding.slot] = _with_slot(binding, slots[binding.slot])
    for name in slots:
        if name not in bindings:
            parent = model.get_submodule(name.rpartition(".")[0])
            raise ValueError(
                f"slot {name!r} sits in a {type(parent).__name__}, where no layer could be paired with it; "
                f"supported: {supported()}"
            )
    normed = {layer for binding in bindings.values() for layer in binding.layers}
    ordered = [bindings[name] for name in slots]
    return [replace(b, unnormed=tuple(layer for layer in b.unnormed if layer not in normed)) for b in ordered]


def _with_slot(binding: Binding, slot: NormSlot) -> Binding:
    """Complete a rule's binding by what the slot itself knows."""
    if binding.has_activation and not slot.told_activation:
        raise ValueError(
            f"slot {binding.slot!r} stands for a norm with an activation, but timm did not tell it which: build the "
            f"model with its own norms and call affnorm_zoo.slot_norms(model, {slot.normalizer!r}), or pass "
            f"norm_layer=affnorm_zoo.norm_layer({slot.normalizer!r}, act_layer=...)"
        )
    if isinstance(slot.drop, nn.Identity) and not isinstance(slot.act, nn.Identity):
        binding = replace(binding, activation=f"{binding.slot}.act")
    return replace(binding, layout=binding.layout or slot.layout)


def candidate_bindings(model: nn.Module) -> Iterator[Binding]:
    """Where the families' rules expect a norm, whatever stands there; paths are the model's."""
    for item, path, family in _rule_items(model):
        if isinstance(item, Binding):
            yield replace(
                item,
                slot=path + item.slot,
                layers=tuple(path + layer for layer in item.layers),
                unnormed=tuple(path + layer for layer in item.unnormed),
                activation=None if item.activation is None else path + item.activation,
                writer=None if item.writer is None else path + item.writer,
                layout=item.layout or family.layout,
            )


def plan_absorptions(model: nn.Module, bindings: list[Binding]) -> list[Absorption]:
    """The activations beside a layer that is bound; whether the layer can take them is for the layer to say."""
    bound = {layer for binding in bindings for layer in (*binding.layers, *binding.unnormed)}
    found = []
    for binding in bindings:
        before = binding.writer if binding.norm_first else next(iter(binding.layers), None)
        if before is not None and binding.activation is not None:
            found.append(Absorption(binding.activation, before, "output"))
    for item, path, _ in _rule_items(model):
        if isinstance(item, Absorption):
            found.append(replace(item, activation=path + item.activation, layer=path + item.layer))
    return [absorption for absorption in found if absorption.layer in bound]


def _rule_items(model: nn.Module) -> Iterator[tuple[Binding | Absorption, str, Family]]:
    for prefix, parent in model.named_modules():
        for family in FAMILIES:
            for kind, rule in family.rules.items():
                if type(parent) is kind or (kind in family.roots and isinstance(parent, kind)):
                    for item in rule(parent):
                        yield item, prefix + "." if prefix else "", family
