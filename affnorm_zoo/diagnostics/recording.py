"""Record one pass of a model: every affine layer's input, and the gradient at its pre-activation."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp
from torch.nn import functional as F

from affnorm_zoo.functional.activation import apply_activation
from affnorm_zoo.layers import affine_layers, channel_axis

Loss = Callable[[Tensor, Tensor], Tensor]


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy: a sample's gradient then does not depend on the rest of the batch."""
    return F.cross_entropy(logits, labels, reduction="sum")


@dataclass(frozen=True)
class Call:
    """One layer's input x, and the gradient g of the loss at its pre-activation z, with the shape of z."""

    name: str
    module: nn.Module
    x: Tensor
    g: Tensor

    @property
    def channel_axis(self) -> int:
        """The axis of z that is not a position."""
        return channel_axis(self.module) % self.g.ndim

    def pre_activation(self, parameters: dict[str, Tensor] | None = None, x: Tensor | None = None) -> Tensor:
        """z for other parameters or another input, in the parameters' precision, before the layer's own activation."""
        layer: Any = self.module
        x = self.x if x is None else x.to(self.x)
        activation = getattr(layer, "activation", "none")
        try:
            if activation != "none":
                layer.activation = "none"
            return functional_call(layer, parameters or {}, (x,))
        finally:
            if activation != "none":
                layer.activation = activation


def record_calls(
    model: nn.Module, images: Tensor, labels: Tensor, loss: Loss, parameters: Sequence[Tensor] = ()
) -> list[Call]:
    """Run forward and backward once, in the model's current mode.

    Only the gradients of ``parameters`` are computed and set. The gradients of all other parameters stay unchanged.

    Returns:
        The linear and convolution layers that are called once and get a gradient, in the order of the calls.

    Raises:
        ValueError: the model is compiled in place, so hooks do not run.
    """
    model = bare(model)
    names = {module: name for name, module in affine_layers(model)}
    seen: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        output = output.requires_grad_() if not output.requires_grad else output
        seen.setdefault(module, []).append((inputs[0].detach(), output))
        return output.clone()  # later operations may overwrite it in place

    with hooked(names, hook), torch.enable_grad():
        value = loss(model(images), labels)
        once = [(module, *calls[0]) for module, calls in seen.items() if len(calls) == 1]
        wanted = [*(output for _, _, output in once), *parameters]
        gradients = torch.autograd.grad(value, wanted, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients[len(once) :], strict=True):
        parameter.grad = gradient
    return [
        _at_pre_activation(names[module], module, x, gradient)
        for (module, x, _), gradient in zip(once, gradients, strict=False)
        if gradient is not None
    ]


def record_inputs(model: nn.Module, images: Tensor, calls: list[Call]) -> dict[str, Tensor]:
    """The inputs of the layers of ``calls`` in ``model``, which may be a copy, by name."""
    seen: dict[str, Tensor] = {}
    names = {module: name for name, module in model.named_modules() if name in {call.name for call in calls}}

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
        seen[names[module]] = inputs[0].clone()

    with hooked(names, hook), torch.no_grad():
        model(images)
    return seen


def bare(model: nn.Module) -> nn.Module:
    """The model inside :func:`torch.compile`'s wrapper; both share their parameters.

    Raises:
        ValueError: the model or a part of it is compiled in place.
    """
    model = getattr(model, "_orig_mod", model)
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise ValueError(
                f"{name or 'the model'} is compiled in place, and a compiled layer cannot be inspected; measure the "
                "model before compiling it, or compile it with model = torch.compile(model)"
            )
    return model


def in_full_precision(x: Tensor) -> torch.autocast:
    """Disable autocast, which would round a small Δz to zero."""
    return torch.autocast(x.device.type, enabled=False)


@contextmanager
def hooked(modules: Iterable[nn.Module], hook: Callable) -> Iterator[None]:
    """Call ``hook`` after the forward pass of each module, until the block ends."""
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _at_pre_activation(name: str, module: nn.Module, x: Tensor, gradient: Tensor) -> Call:
    """Backpropagate the gradient through the activation that the layer applies itself."""
    activation = getattr(module, "activation", "none")
    weight: Any = module.weight
    call = Call(name, module, x.to(weight), gradient.to(weight))
    if activation == "none":
        return call
    with torch.no_grad(), in_full_precision(x):
        z = call.pre_activation()
        (g,) = vjp(lambda z: apply_activation(z, activation), z)[1](call.g)
    return Call(name, module, call.x, g)
