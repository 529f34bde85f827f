"""The divergence: how a gradient step on a layer's parameters moves its activations, against their ideal step."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.func import jvp, vjp

from affnorm_zoo.diagnostics.recording import Call, Loss, bare, in_full_precision, record_calls


@dataclass(frozen=True)
class LayerDivergence:
    """One layer's effective learning-rate factors, float64, over the N samples that have a gradient.

    A parameter step with learning rate η from one sample's gradient g alone moves its pre-activation z by Δz. The ideal
    is -ηg.

    Args:
        name: name of the module.
        kind: class of the module.
        self_factor: (N,), ⟨Δz, -ηg⟩ / ‖ηg‖² with g kept at one randomly drawn position (token or pixel), and Δz read
            there. A position's probability is proportional to its ‖g‖², so the mean is the effect of all positions on
            themselves.
        factor: (N,), the same with all positions together. They share the weights and therefore move each other.
        cosine: (N,), between Δz and -g, with all positions together.
        interference: (pairs,) in [-1, 1]: how much sample i's step moves sample j's z along i's gradient, at the
            drawn positions, over the geometric mean of both samples' effects on themselves. For a plain layer this is
            (⟨x_i, x_j⟩ + 1) / √((‖x_i‖² + 1)(‖x_j‖² + 1)).
    """

    name: str
    kind: str
    self_factor: Tensor
    factor: Tensor
    cosine: Tensor
    interference: Tensor

    @property
    def cross_factor(self) -> Tensor:
        """What the other positions add to a sample's factor, (N,); 0 if there is only one position."""
        return self.factor - self.self_factor


QUANTITIES = ("self_factor", "cross_factor", *(f.name for f in fields(LayerDivergence)[3:]))


def measure_divergence(
    model: nn.Module, images: Tensor, labels: Tensor, loss: Loss, seed: int = 0, sources: int = 4
) -> list[LayerDivergence]:
    """Measure every linear and convolution layer that a model calls once, with the other layers fixed.

    The measurement assumes nothing about a layer. Δz is the derivative of its output along its own parameters'
    gradient, so our layers are measured with their divisors. An activation that a layer applies itself is removed
    first. The model is measured in evaluation mode; its own mode is restored.

    Args:
        model: any torch model, also one wrapped by :func:`torch.compile`. Under autocast, inputs and gradients are
            those of the rounded model, and the derivatives are in the parameters' precision.
        images: (N, C, H, W), as the model takes them.
        labels: (N,).
        loss: (logits, labels) -> the sum of the images' losses; each may depend on its own image only.
        seed: of the drawn positions.
        sources: number of samples whose steps are used to measure interference.

    Returns:
        One entry per layer, in the order of the calls. Layers whose output gets no gradient are left out.

    Raises:
        ValueError: the model is compiled in place.

    Source:
        Bird 2025, https://arxiv.org/abs/2512.22247: the factor of an affine layer is ‖x‖² + 1.
    """
    model = bare(model)
    was_training = model.training
    try:
        calls = record_calls(model.eval(), images, labels, loss)
    finally:
        model.train(was_training)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad(), in_full_precision(images):
        measured = [_measure_layer(call, generator, sources) for call in calls]
    return [layer for layer in measured if layer is not None]


def _measure_layer(call: Call, generator: torch.Generator, sources: int) -> LayerDivergence | None:
    chosen = [i for i in range(len(call.g)) if call.g[i].any()]
    if not chosen:
        return None
    masks = {i: _one_position(call, i, generator) for i in chosen}
    parameters = {name: p.detach() for name, p in call.module.named_parameters()}
    rows, own_factors, crossed = [], {}, {}
    for number, i in enumerate(chosen):
        x, g = call.x[i : i + 1], call.g[i : i + 1]
        pull = vjp(lambda p, x=x: call.pre_activation(p, x), parameters)[1]
        here = g * masks[i]
        is_source = number < sources
        # all samples see the step of a source; only the sample itself sees the step of another
        seen = call.x if is_source else x
        # the first tangent has all positions, the second only one
        move = _push(call, parameters, pull(g)[0], x)
        own_move = _push(call, parameters, pull(here)[0], seen)
        own_factors[i] = _dot(own_move[i if is_source else 0], here[0]) / _dot(here, here)
        if is_source:
            crossed[i] = (here, own_move)
        dot = _dot(move, g)
        rows.append((own_factors[i], dot / _dot(g, g), dot / (_dot(move, move) * _dot(g, g)) ** 0.5))
    interference = [
        _response(call, here, own_move[j], masks[j]) / (own_factors[i] * own_factors[j]) ** 0.5
        for i, (here, own_move) in crossed.items()
        for j in chosen
        if j != i
    ]
    self_factor, factor, cosine = torch.tensor(rows, dtype=torch.float64).unbind(1)
    pairs = torch.tensor(interference, dtype=torch.float64)
    return LayerDivergence(call.name, type(call.module).__name__, self_factor, factor, cosine, pairs)


def _push(call: Call, parameters: dict[str, Tensor], tangent: dict[str, Tensor], x: Tensor) -> Tensor:
    return jvp(lambda p: call.pre_activation(p, x), (parameters,), (tangent,))[1]


def _one_position(call: Call, sample: int, generator: torch.Generator) -> Tensor:
    """1 at a pixel or token of the sample drawn with probability ∝ ‖g‖², 0 elsewhere; (1, ...) with one channel."""
    weight = call.g[sample : sample + 1].double().square().sum(call.channel_axis, keepdim=True)
    flat = weight.flatten().cpu()
    mask = torch.zeros_like(flat)
    mask[torch.multinomial(flat, 1, generator=generator)] = 1
    return mask.view(weight.shape).to(call.g)


def _response(call: Call, here: Tensor, move: Tensor, mask: Tensor) -> float:
    """How far sample j moves at its position along the gradient g of sample i at i's position, over ‖g‖²."""
    positions = [axis for axis in range(here.ndim) if axis != call.channel_axis]
    g = here.sum(positions)  # zero at all positions except one
    moved = (move[None] * mask).sum(positions)
    return _dot(moved, g) / _dot(g, g)


def _dot(a: Tensor, b: Tensor) -> float:
    return (a.double() * b.double()).sum().item()
