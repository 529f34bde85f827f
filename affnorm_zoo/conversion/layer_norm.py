"""Layer norm of a transformer into an L2 norm, exactly.

A layer norm subtracts the mean over the channels, divides by the standard deviation, and applies γ and β. If everything
that is written into the residual stream has mean 0 over the channels, so has the stream, and the first step does
nothing. So the embeddings and the last layers of the branches are centred, with the branches' LayerScale folded in
before. γ goes into the layers that read the norm, W γ, and β into their bias, b + W β. The division by the RMS remains.
Only the norm's eps is lost.
"""

import copy

import torch
from torch import Tensor, nn

from affnorm_zoo.conversion.stream import LAYER_NORMS, TRANSFORMERS, check_stream, fold_layer_scales, written
from affnorm_zoo.errors import UsageError
from affnorm_zoo.factory import Binding, plan_bindings, slot_for
from affnorm_zoo.factory.bind import prepare_layers


def center_layer_norms(model: nn.Module, normalizer: str) -> tuple[nn.Module, list[Binding]]:
    """A copy of the model, centred and folded, whose layer norms are slots for ``normalizer``, and what binds them.

    A final norm whose reader is not the classifier stays as it is, which is exact too.

    Raises:
        UsageError: a norm's surroundings are not those of a transformer with norms before its branches.
    """
    roots = {name: module for name, module in model.named_modules() if isinstance(module, TRANSFORMERS)}
    names = " or ".join(kind.__name__ for kind in TRANSFORMERS)
    inside = {id(module) for root in roots.values() for module in root.modules()}
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and id(module) not in inside:
            raise UsageError(
                f"{name!r}, a {type(module).__name__}, is not part of a timm {names}: in other networks "
                "a norm may stand elsewhere than between a residual stream and linear layers, and the conversion would "
                "not be exact; convert the part of the model that is one of these"
            )
    for name, root in roots.items():
        check_stream(name, root)
    slotted = copy.deepcopy(model)
    prepare_layers(slotted)
    for name in roots:
        _center(slotted.get_submodule(name))
        _fold(slotted.get_submodule(name), normalizer)
    return slotted, plan_bindings(slotted)


@torch.no_grad()
def _center(root: nn.Module) -> None:
    fold_layer_scales(root)
    for parameter, axis in written(root):
        wide = parameter.double()
        parameter.copy_(wide - wide.mean(dim=axis, keepdim=True))


def _fold(root: nn.Module, normalizer: str) -> None:
    """Move γ and β of every norm into what reads it, and put a slot in its place."""
    heads = [getattr(root, name, None) for name in ("head", "head_dist")]
    classifiers = [head for head in heads if isinstance(head, nn.Linear)]
    norms = {name: norm for name, norm in root.named_modules() if isinstance(norm, nn.LayerNorm)}
    slots = {name: slot_for(norm, normalizer) for name, norm in norms.items()}
    for name in norms:
        if name in ("norm", "fc_norm") and not classifiers:
            del slots[name]
        else:
            root.set_submodule(name, slots[name])
    for binding in plan_bindings(root):
        readers = [root.get_submodule(layer) for layer in binding.layers] or classifiers
        for reader in readers:
            _absorb_affine(norms[binding.slot], reader)


def eps_note(model: nn.Module, images: Tensor | None) -> tuple[str, ...]:
    """What the loss of the norms' eps costs: the largest change of a normalised token, measured on images."""
    norms = [module for module in model.modules() if type(module) in LAYER_NORMS]
    eps = max(float(norm.eps) for norm in norms)
    note = f"an L2 norm has no eps; the layer norms had {eps:g} beside the variance"
    if images is None:
        return (f"{note}: a token of variance v changes by {eps / 2:g} / v of its size",)
    changes = []

    def measure(norm: nn.LayerNorm, inputs: tuple[Tensor, ...]) -> None:
        variance = inputs[0].double().var(dim=-1, correction=0)
        changes.append(float(((1 + norm.eps / variance).sqrt() - 1).max()))

    handles = [norm.register_forward_pre_hook(measure) for norm in norms]
    model(images)
    for handle in handles:
        handle.remove()
    return (f"{note}: normalised tokens change by at most {max(changes):.1g} of their size",)


@torch.no_grad()
def _absorb_affine(norm: nn.LayerNorm, reader: nn.Linear) -> None:
    if norm.bias is not None:
        shift = reader.weight.double() @ norm.bias.double()
        if reader.bias is None and bool(shift.any()):
            empty: Tensor = torch.zeros(reader.out_features, device=reader.weight.device, dtype=reader.weight.dtype)
            reader.bias = nn.Parameter(empty, requires_grad=reader.weight.requires_grad)
        if reader.bias is not None:
            reader.bias.copy_(reader.bias.double() + shift)
    if norm.weight is not None:
        reader.weight.copy_(reader.weight.double() * norm.weight.double())
