from torch import nn

from affnorm_zoo.factory.families import supported
from affnorm_zoo.factory.plan import candidate_bindings
from affnorm_zoo.factory.slot import is_norm, slot_for


def slot_norms(model: nn.Module, normalizer: str) -> list[str]:
    """Put a slot in the place of every norm of ``model``, in place, for :func:`affnorm_zoo.bind` to bind.

    This needs no ``norm_layer=``, so it also serves networks whose norms hold their activation, and trained ones.
    What the norms have learned is dropped. Norms inside modules that no family covers stay, such as those of an
    attention over channels.

    Args:
        model: a network as timm builds it.
        normalizer: a registered divergence-free normaliser.

    Returns:
        The paths of the slots, in the order of the families' rules.

    Raises:
        ValueError: there is no such norm, or the normaliser is not divergence-free. The model is then unchanged.
    """
    modules = dict(model.named_modules(remove_duplicate=False))  # one norm may stand in several places
    names = [b.slot for b in candidate_bindings(model) if b.slot in modules and is_norm(modules[b.slot])]
    if not names:
        raise ValueError(f"the model has no norm that a slot could replace; supported: {supported()}")
    slots = {name: slot_for(modules[name], normalizer) for name in names}
    for name, slot in slots.items():
        model.set_submodule(name, slot)
    return list(slots)
