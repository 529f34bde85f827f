"""How far a gradient step on a layer's parameters moves its activations from where they should go."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp

from affnorm_zoo.functional.activation import apply_activation


@dataclass(frozen=True)
class LayerDivergence:
    """One layer's effective learning-rate factors over the samples, (N,) float64 each.

    A step of rate η on the parameters, from one sample's gradient g alone, moves its pre-activation z by Δz; the ideal
    is -ηg. ``self_factor`` is ⟨Δz, -ηg⟩ / ‖ηg‖² where g is kept at one position, the token or pixel of a draw, and Δz
    read there; ``factor`` and ``cosine`` are those of all positions at once, which share the weights and so move each
    other.
    """

    name: str
    kind: str
    self_factor: Tensor
    factor: Tensor
    cosine: Tensor

    def summary(self) -> dict[str, Any]:
        """Means, and the spread of the self factor: deviation over mean, and 99th over 1st percentile."""
        own = self.self_factor
        low, high = torch.quantile(own, torch.tensor([0.01, 0.99], dtype=own.dtype)).tolist()
        return {
            "layer": self.name,
            "kind": self.kind,
            "self_factor": own.mean().item(),
            "self_factor_cv": (own.std(correction=0) / own.mean()).item(),
            "self_factor_p99_over_p1": high / low if low > 0 else float("inf"),
            "factor": self.factor.mean().item(),
            "cosine": self.cosine.mean().item(),
            "n": len(own),
        }


def measure_divergence(
    model: nn.Module, images: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor], seed: int = 0
) -> list[LayerDivergence]:
    """Measure every linear and convolution layer that a model calls once, with the other layers held.

    Nothing is assumed of a layer: Δz is the derivative of its output along its own parameters' gradient, so that ours,
    with their divisors, are measured as they are. An activation that a layer applies itself is taken off first. The
    model is measured in evaluation mode, and put back into its own.

    Args:
        model: any torch model; not compiled.
        images: (N, C, H, W), as the model takes them.
        labels: (N,).
        loss: of logits and labels, each image's by itself, summed.
        seed: of the positions.

    Returns:
        One entry a layer, in the order of the calls; layers whose output gets no gradient are left out.

    Source:
        Bird 2025, https://arxiv.org/abs/2512.22247: the factor of an affine layer is ‖x‖² + 1.
    """
    calls = _record(model, images, labels, loss)
    generator = torch.Generator().manual_seed(seed)
    results = []
    for name, module, x, gradient in calls:
        rows = [_measure_sample(module, x[i : i + 1], gradient[i : i + 1], generator) for i in range(len(x))]
        rows = [row for row in rows if row is not None]
        if rows:
            table = torch.tensor(rows, dtype=torch.float64)
            results.append(LayerDivergence(name, type(module).__name__, *table.unbind(1)))
    return results


def _record(
    model: nn.Module, images: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> list[tuple[str, nn.Module, Tensor, Tensor]]:
    """Run forward and backward once and keep each layer's input and its output's gradient."""
    names = {module: name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    seen: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # a view of its own: what follows may write into the output
        output = output.requires_grad_() if not output.requires_grad else output
        kept = output.clone()
        output.register_hook(lambda gradient: seen.setdefault(module, []).append((inputs[0].detach(), gradient)))
        return kept

    handles = [module.register_forward_hook(hook) for module in names]
    was_training = model.training
    try:
        with torch.enable_grad():
            loss(model.eval()(images), labels).backward()
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
        model.zero_grad()
    found = [(names[module], module, *calls[0]) for module, calls in seen.items() if len(calls) == 1]
    return found[::-1]  # gradients come from the last layer first


def _measure_sample(
    module: nn.Module, x: Tensor, gradient: Tensor, generator: torch.Generator
) -> tuple[float, float, float] | None:
    """Self factor, factor and cosine of one sample; None where its gradient is zero."""
    layer: Any = module
    activation = getattr(layer, "activation", "none")
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def pre_activation(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(module, parameters, (x,))

    try:
        if activation != "none":
            layer.activation = "none"
        z, pull = vjp(pre_activation, parameters)[:2]
        (g,) = vjp(lambda z: apply_activation(z, activation), z)[1](gradient)
        if not g.any():
            return None
        move = jvp(pre_activation, (parameters,), pull(g))[1]
        here = _at_one_position(module, g, generator)
        own_move = jvp(pre_activation, (parameters,), pull(here))[1]
    finally:
        if activation != "none":
            layer.activation = activation
    dot = _dot(move, g)
    return (
        _dot(own_move, here) / _dot(here, here),
        dot / _dot(g, g),
        dot / (_dot(move, move) * _dot(g, g)) ** 0.5,
    )


def _at_one_position(module: nn.Module, g: Tensor, generator: torch.Generator) -> Tensor:
    """The gradient at one pixel or token that has any, zero elsewhere."""
    channels = 1 if isinstance(module, nn.Conv2d) else g.ndim - 1
    has_gradient = g.abs().sum(channels, keepdim=True).flatten().nonzero().flatten()
    chosen = has_gradient[torch.randint(len(has_gradient), (1,), generator=generator).item()]
    mask = torch.zeros_like(g.sum(channels, keepdim=True)).flatten()
    mask[chosen] = 1
    shape = list(g.shape)
    shape[channels] = 1
    return g * mask.view(shape)


def _dot(a: Tensor, b: Tensor) -> float:
    return (a.double() * b.double()).sum().item()
