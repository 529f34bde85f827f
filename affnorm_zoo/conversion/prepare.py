import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from affnorm_zoo.conversion.check import BATCH_NORMS
from affnorm_zoo.conversion.fold import fold_batch_norms
from affnorm_zoo.conversion.layer_norm import center_layer_norms
from affnorm_zoo.conversion.stream import TRANSFORMERS
from affnorm_zoo.errors import UsageError
from affnorm_zoo.factory import Binding
from affnorm_zoo.layers import L2Norm
from affnorm_zoo.registry import NormalizerSpec


@dataclass
class Prepared:
    """A network whose norms have given their parameters to the layers beside them.

    Args:
        slotted: with a slot in the place of every norm.
        reference: the same function as the model's, in which only what is left of each norm stands in its place.
        bindings: of the slots.
        probes: inputs of parts of the model, by path, to compare the two with where there are no images.
    """

    slotted: nn.Module
    reference: nn.Module
    bindings: list[Binding]
    probes: dict[str, Tensor] = field(default_factory=dict)

    @property
    def is_exact_but_for_eps(self) -> bool:
        """Whether the reference lacks the eps of layer norms."""
        return any(binding.norm_first for binding in self.bindings)


def prepare(model: nn.Module, spec: NormalizerSpec) -> Prepared:
    """Fold the model's norms into its layers, for a normaliser of convolutions or of linear layers.

    Raises:
        UsageError: the model cannot be converted, or not to this normaliser.
    """
    has_batch_norm = any(type(module) in BATCH_NORMS for module in model.modules())
    has_layer_norm = any(isinstance(module, nn.LayerNorm) for module in model.modules())
    if spec.conv is not None and (has_batch_norm or spec.linear is None):
        slotted, bindings = fold_batch_norms(model, spec.name)
        return Prepared(slotted, _reference(slotted, bindings), bindings)
    if not has_layer_norm:
        raise UsageError(
            f"the model has no LayerNorm to convert to {spec.name!r}"
            + (": for a network with batch norms use 'patchnorm'" if has_batch_norm else "")
        )
    slotted, bindings = center_layer_norms(model, spec.name)
    _add_biases(slotted, bindings, spec)
    return Prepared(slotted, _reference(slotted, bindings), bindings, _probes(model))


def _reference(slotted: nn.Module, bindings: list[Binding]) -> nn.Module:
    reference = copy.deepcopy(slotted)
    for binding in bindings:
        slot = reference.get_submodule(binding.slot)
        is_norm = binding.norm_first or not binding.layers
        left = L2Norm(slot.num_channels, scale="rms") if is_norm else nn.Sequential(slot.drop, slot.act)
        reference.set_submodule(binding.slot, left.eval())
    return reference


def _add_biases(slotted: nn.Module, bindings: list[Binding], spec: NormalizerSpec) -> None:
    """Give a bias to every linear layer that will be fitted: its fit has one."""
    is_norm_like = spec.linear is not None and spec.linear(1, 1, device="meta").inner_kappa() is None
    for binding in bindings:
        for name in binding.unnormed if is_norm_like else (*binding.layers, *binding.unnormed):
            layer = slotted.get_submodule(name)
            if layer.bias is None:
                zeros = torch.zeros(layer.out_features, device=layer.weight.device, dtype=layer.weight.dtype)
                layer.bias = nn.Parameter(zeros, requires_grad=layer.weight.requires_grad)


def _probes(model: nn.Module) -> dict[str, Tensor]:
    """Random images for every transformer in the model."""
    probes = {}
    for name, module in model.named_modules():
        if isinstance(module, TRANSFORMERS):
            weight = module.patch_embed.proj.weight
            size = (2, weight.shape[1], *module.patch_embed.img_size)
            images = torch.rand(size, generator=torch.Generator().manual_seed(0))
            probes[name] = images.to(weight.device, weight.dtype)
    return probes
