from collections.abc import Iterator

from timm.layers import Conv2dSame, Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from affnorm_zoo.factory.init import LARGE_START, init_bound_weights
from affnorm_zoo.factory.plan import Binding, plan_bindings
from affnorm_zoo.functional.activation import LEAKY_SLOPE
from affnorm_zoo.layers import L2Norm, check_writable
from affnorm_zoo.registry import NormalizerSpec, get_normalizer, list_normalizers

_FUSIBLE = {nn.ReLU: "relu", nn.LeakyReLU: "leaky_relu"}


def bind(
    model: nn.Module,
    *,
    scale: str | tuple[float, float] = "rms",
    stem_scale: str | tuple[float, float] | None = None,
    absorb: bool = True,
    init: bool = True,
) -> list[Binding]:
    """Replace every slot of ``model``, in place, by the divergence-free layer it stands for.

    A convolution, its slot and a ReLU behind it become one :class:`PatchNormConv2d`; the linear layers that read a
    slot, and the other linear layers of a transformer block, become ``AffineLikeLinear`` or ``NormLikeLinear``; a
    slot with neither becomes a parameter-free L2 norm of RMS 1. Parameters keep their identity; a convolution without
    a bias gets one, as the norm that it replaces would have had. The classifier stays as it is. A GELU before the last
    layer of an MLP is absorbed too, and convolutions whose output would have to be kept recompute it.

    timm's own ``init_weights`` of a bound model does not know the layers: call :func:`init_bound_weights` after it.

    Args:
        model: a network built with ``norm_layer=affnorm_zoo.norm_layer(name)``.
        scale: ``"rms"``, ``"unit"`` or a pair (c, κ); see :func:`affnorm_zoo.functional.resolve_scale`.
        stem_scale: scale of the first bound layer, if it differs.
        absorb: take activations into the layers. Without, every ReLU and GELU stays a module of its own, to be hooked
            or replaced: the same function, more memory.
        init: initialise the bound layers, by :func:`init_bound_weights`, and those of a vision transformer with
            :data:`LARGE_START`.

    Returns:
        What was bound: one entry a slot, in the order of the model's modules.

    Raises:
        ValueError: there is no slot, a slot cannot be paired with a layer, the channel counts differ, the normaliser
            is not made for such layers, or a layer has hooks or a weight computed from others, which would be lost.
            The model is then unchanged.
    """
    bindings = plan_bindings(model)
    for binding in bindings:
        _check(model, binding)
    specs = {binding.slot: get_normalizer(model.get_submodule(binding.slot).normalizer) for binding in bindings}
    for index, binding in enumerate(bindings):
        own_scale = stem_scale if index == 0 and stem_scale is not None else scale
        _apply(model, binding, specs[binding.slot], own_scale, absorb)
    for binding in bindings:
        block = _parent(model, binding.slot)
        if isinstance(block, Block):
            for name, layer in list(block.named_modules()):
                if type(layer) is nn.Linear:
                    _place(block, name, _bound_linear(layer, specs[binding.slot], scale))
            if absorb:
                _absorb_gelu(block)
    if init:
        init_bound_weights(model, **(LARGE_START if isinstance(model, VisionTransformer) else {}))
    return bindings


def _check(model: nn.Module, binding: Binding) -> None:
    for name in _replaced(model, binding):
        module = model.get_submodule(name)
        check_writable(module)
        if _has_hooks(module):
            raise ValueError(f"{name!r} has hooks, which what takes its place would not have: register them after bind")
    slot = model.get_submodule(binding.slot)
    spec = get_normalizer(slot.normalizer)
    is_conv = spec.conv is not None
    kinds: tuple[type[nn.Module], ...] = (nn.Conv2d, Conv2dSame) if is_conv else (nn.Linear,)
    layers = binding.layers if binding.layers or not is_conv else (binding.slot,)
    for name in layers:
        layer = model.get_submodule(name)
        # exact types: the forward of a subclass would be lost
        if type(layer) not in kinds:
            others = [other for other in list_normalizers() if _fuses_with(get_normalizer(other), layer)]
            remedy = f"; for this model use one of {', '.join(others)}" if others else ""
            raise ValueError(
                f"slot {binding.slot!r}: {spec.name!r} fuses with {' or '.join(kind.__name__ for kind in kinds)}, "
                f"but {name!r} is a {type(layer).__name__}{remedy}"
            )
        channels = layer.out_channels if is_conv else layer.in_features
        if channels != slot.num_channels:
            raise ValueError(
                f"slot {binding.slot!r} has {slot.num_channels} channels, but {name!r} has {channels} "
                f"{'output channels' if is_conv else 'input features'}"
            )


def _replaced(model: nn.Module, binding: Binding) -> Iterator[str]:
    """The modules that give way: the slot, its layers, and the other linear layers of its transformer block."""
    yield from (binding.slot, *binding.layers)
    block, prefix = _parent(model, binding.slot), binding.slot.rpartition(".")[0]
    if isinstance(block, Block):
        yield from (f"{prefix}.{name}" for name, module in block.named_modules() if isinstance(module, nn.Linear))


def _has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _fuses_with(spec: NormalizerSpec, layer: nn.Module) -> bool:
    return (spec.conv is not None and type(layer) is nn.Conv2d) or (
        spec.linear is not None and type(layer) is nn.Linear
    )


def _apply(
    model: nn.Module, binding: Binding, spec: NormalizerSpec, scale: str | tuple[float, float], absorb: bool
) -> None:
    if not binding.layers:
        slot = model.get_submodule(binding.slot)
        _place(model, binding.slot, L2Norm(slot.num_channels, scale="rms"))
        return
    _place(model, binding.slot, nn.Identity())
    for name in binding.layers:
        layer = model.get_submodule(name)
        if spec.conv is not None:
            activation = _absorb_activation(model, binding.activation) if absorb else "none"
            _place(model, name, _bound_conv(layer, spec, scale, activation))
        else:
            _place(model, name, _bound_linear(layer, spec, scale))


def _absorb_activation(model: nn.Module, name: str | None) -> str:
    """Replace a fusible activation by an identity and return its name, or return ``"none"``."""
    if name is None:
        return "none"
    module = model.get_submodule(name)
    if _has_hooks(module) or (isinstance(module, nn.LeakyReLU) and module.negative_slope != LEAKY_SLOPE):
        return "none"
    fusible = _FUSIBLE.get(type(module), "none")
    if fusible != "none":
        _place(model, name, nn.Identity())
    return fusible


def _absorb_gelu(block: Block) -> None:
    """Move an exact GELU from between the layers of a block's MLP into the second one."""
    mlp = block.mlp
    is_exact = type(mlp) is Mlp and type(mlp.act) is nn.GELU and mlp.act.approximate == "none"
    if is_exact and mlp.drop1.p == 0 and not _has_hooks(mlp.act):
        mlp.fc2.input_activation = "gelu"
        _place(mlp, "act", nn.Identity())


def _bound_conv(conv: nn.Conv2d, spec: NormalizerSpec, scale: str | tuple[float, float], activation: str) -> nn.Module:
    kind = spec.conv_same if isinstance(conv, Conv2dSame) else spec.conv
    assert kind is not None, "plan and check let only convolutions of this kind pass"
    bound = kind(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        padding_mode=conv.padding_mode,
        device="meta",  # the parameters come from conv
        dtype=conv.weight.dtype,
        scale=scale,
        activation=activation,
        recompute=activation == "none" and max(conv.kernel_size) > 1,
        **spec.options,
    )
    bound.adopt(conv)
    return bound


def _bound_linear(linear: nn.Linear, spec: NormalizerSpec, scale: str | tuple[float, float]) -> nn.Module:
    assert spec.linear is not None, "plan and check let only linear layers pass"
    bound = spec.linear(
        linear.in_features,
        linear.out_features,
        linear.bias is not None,
        scale=scale,
        device="meta",  # the parameters come from linear
        dtype=linear.weight.dtype,
        **spec.options,
    )
    bound.adopt(linear)
    return bound


def _place(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place, and into the mode, of the submodule ``name``."""
    model.set_submodule(name, module.train(model.get_submodule(name).training))


def _parent(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])
