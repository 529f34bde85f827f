"""Layer norm of a transformer into an L2 norm, exactly.

A layer norm subtracts the mean over the channels, divides by the deviation, and applies γ and β. If all that is written
into the residual stream has mean 0 over the channels, so has the stream, and the first step does nothing. So the
embeddings and the last layers of the branches are centred, with the branches' LayerScale folded in before; γ goes into
the layers that read the norm, W γ, and β into their bias, b + W β. What is left of the norm is the division by the RMS.
Only the norm's eps is lost.
"""

import copy
from collections.abc import Iterator

import torch
from timm.layers import Attention, GluMlp, LayerNorm, LayerScale, Mlp, PatchEmbed, SwiGLU
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from affnorm_zoo.errors import UsageError
from affnorm_zoo.factory import Binding, plan_bindings, slot_for
from affnorm_zoo.layers import check_writable

LAYER_NORMS = (nn.LayerNorm, LayerNorm)
_BRANCH_ENDS = ("attn.proj", "mlp.fc2")
_POOLS = ("token", "avg", "")  # a maximum over tokens does not commute with what is done here


def center_layer_norms(model: nn.Module, normalizer: str) -> tuple[nn.Module, list[Binding]]:
    """A copy of the model, centred and folded, whose layer norms are slots for ``normalizer``, and what binds them.

    A final norm whose reader is not the classifier stays as it is, which is exact too.

    Raises:
        UsageError: a norm's surroundings are not those of timm's VisionTransformer with norms before its branches.
    """
    roots = {name: module for name, module in model.named_modules() if isinstance(module, VisionTransformer)}
    inside = {id(module) for root in roots.values() for module in root.modules()}
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and id(module) not in inside:
            raise UsageError(
                f"{name!r}, a {type(module).__name__}, is not part of a timm VisionTransformer, the only transformer "
                "that is converted so far: convert the part of the model that is one"
            )
    slotted = copy.deepcopy(model)
    for name, root in roots.items():
        _check(name, root)
        _center(slotted.get_submodule(name))
        _fold(slotted.get_submodule(name), normalizer)
    return slotted, plan_bindings(slotted)


def _check(name: str, root: VisionTransformer) -> None:
    prefix = name + "." if name else ""

    def refuse(what: str) -> UsageError:
        return UsageError(
            f"{prefix}{what}: only transformers whose norms stand before the branches and at the end are converted"
        )

    if type(root.patch_embed) is not PatchEmbed or not isinstance(root.patch_embed.norm, nn.Identity):
        raise refuse("patch_embed is not a plain PatchEmbed without a norm")
    if not isinstance(root.norm_pre, nn.Identity):
        raise refuse("norm_pre is a norm in the residual stream")
    if root.attn_pool is not None or root.global_pool not in _POOLS:
        raise refuse(f"global_pool={root.global_pool!r} is not one of {', '.join(map(repr, _POOLS))}")
    for index, block in enumerate(root.blocks):
        place = f"blocks.{index}"
        if type(block) is not Block or type(block.attn) is not Attention:
            raise refuse(f"{place} is a {type(block).__name__} with {type(block.attn).__name__}")
        if type(block.mlp) not in (Mlp, GluMlp, SwiGLU):
            raise refuse(f"{place}.mlp is a {type(block.mlp).__name__}")
        for part in ("attn.q_norm", "attn.k_norm", "attn.norm", "mlp.norm"):
            if not isinstance(block.get_submodule(part), nn.Identity):
                raise refuse(f"{place}.{part} is a norm")
    for path, module in root.named_modules():
        if isinstance(module, nn.LayerNorm) and type(module) not in LAYER_NORMS:
            raise refuse(f"{path} is a {type(module).__name__}")
        if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm):
            check_writable(module)


@torch.no_grad()
def _center(root: VisionTransformer) -> None:
    for block in root.blocks:
        for scale, end in zip(("ls1", "ls2"), _BRANCH_ENDS, strict=True):
            if isinstance(getattr(block, scale), LayerScale):
                layer, gamma = block.get_submodule(end), getattr(block, scale).gamma
                layer.weight.copy_(layer.weight.double() * gamma.double().unsqueeze(1))
                if layer.bias is not None:
                    layer.bias.copy_(layer.bias.double() * gamma.double())
                setattr(block, scale, nn.Identity())
    for parameter, axis in _written(root):
        wide = parameter.double()
        parameter.copy_(wide - wide.mean(dim=axis, keepdim=True))


def _written(root: VisionTransformer) -> Iterator[tuple[nn.Parameter, int]]:
    """Every parameter that writes into the residual stream, and its axis of channels."""
    for layer in (root.patch_embed.proj, *(block.get_submodule(end) for block in root.blocks for end in _BRANCH_ENDS)):
        yield layer.weight, 0
        if layer.bias is not None:
            yield layer.bias, 0
    for name in ("pos_embed", "cls_token", "reg_token", "dist_token"):
        if getattr(root, name, None) is not None:
            yield getattr(root, name), -1


def _fold(root: VisionTransformer, normalizer: str) -> None:
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
