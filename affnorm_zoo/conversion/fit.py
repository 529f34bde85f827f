"""The fits of one layer, from normal equations that are summed up in float64, a few images at a time."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from affnorm_zoo.conversion.view import LayerView
from affnorm_zoo.errors import UsageError

FITS = ("layer", "channel", "lstsq")
RIDGE = 1e-4  # of the mean diagonal entry, towards the scaled weights
_SINGULAR = 1e-9  # likewise, for two unknowns per channel: only decides where a channel never responds
# "lstsq" takes this many positions per unknown, and never fewer than the second number, drawn at random where there
# are more: the error of a least-squares solution exceeds the smallest one by a share of about unknowns / positions
POSITIONS_PER_UNKNOWN, _FEWEST_POSITIONS = 100, 2**14
_ENTRIES = 2**22  # of the patches that are held at once, in float64: 32 MiB


class Equations:
    """Normal equations of independent least-squares problems, Σ_p φ_p φ_pᵀ θ = Σ_p φ_p t_p."""

    def __init__(self) -> None:
        self.gram = self.moment = self.square = torch.zeros(())
        self.num_rows = 0

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Add positions: φ (problems, unknowns, positions) and t (problems, outputs, positions)."""
        self.gram = self.gram + features @ features.transpose(1, 2)
        self.moment = self.moment + features @ targets.transpose(1, 2)
        self.square = self.square + targets.square().sum()
        self.num_rows += features.shape[2]

    def solve(self, prior: Tensor, ridge: float, zero_sum: bool = False) -> Tensor:
        """The least-squares solution θ (problems, unknowns, outputs) with a ridge towards ``prior``.

        With ``zero_sum`` all unknowns but the last sum to zero.
        """
        size = self.gram.shape[1]
        diagonal = self.gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
        damped = self.gram + ridge * diagonal[:, None, None] * torch.eye(size, dtype=torch.float64, device=prior.device)
        solution = prior + torch.linalg.solve(damped, self.moment - self.gram @ prior)
        if zero_sum:
            ones = torch.ones(1, size, 1, dtype=torch.float64, device=prior.device)
            ones[:, -1] = 0
            toward = torch.linalg.solve(damped, ones.expand(len(damped), -1, -1))
            solution = solution - toward @ ((ones.mT @ solution) / (ones.mT @ toward))
        return solution

    def error(self, theta: Tensor) -> float:
        """‖φθ - t‖ / ‖t‖ over all positions."""
        squares = self.square - 2 * (theta * self.moment).sum() + (theta * (self.gram @ theta)).sum()
        return float((squares.clamp_min(0) / self.square).sqrt()) if self.square > 0 else 0.0


def fit_layer(
    kind: str,
    name: str,
    view: LayerView,
    x: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> float:
    """Choose weight and bias of a layer so that it maps ``x`` to ``targets``, and write them into it.

        "layer":    W = f W', β = f b' with f = E√(‖x_p‖² + κ²) / c, per group; behind a norm W = E(g_p / a_p) W'
        "channel":  W = γ W', and γ and β per output channel by least squares
        "lstsq":    W and β by least squares with a ridge towards those of "layer"

    Args:
        kind: one of :data:`FITS`.
        name: of the layer, for messages.
        view: of the layer.
        x: its inputs, (N, ...).
        targets: outputs W' x_p + b' of the layer that it replaces, for that layer's own inputs.
        weight, bias: W' and b'.

    Returns:
        The distance of the layer's outputs from the targets over the RMS of these, at the positions of the fit.

    Raises:
        UsageError: inputs or targets are non-finite, or there are fewer positions than unknowns.
    """
    if not (bool(x.isfinite().all()) and bool(targets.isfinite().all())):
        raise UsageError(f"the activations at {name!r} are non-finite for these images: convert in float32")
    prior = _prior(view, x, weight, bias)
    equations = Equations()
    wanted = max(POSITIONS_PER_UNKNOWN * (view.fan_in + 1), _FEWEST_POSITIONS)
    share = min(1.0, wanted * len(weight) / targets.numel())
    generator = torch.Generator().manual_seed(0)
    for x_chunk, target_chunk in _chunks(view, x, targets):
        t = view.columns(target_chunk)
        if kind == "lstsq":
            order = torch.randperm(t.shape[-1], generator=generator)
            chosen = order[: math.ceil(share * len(order))].to(t.device)
            equations.add(_kernel_features(view, x_chunk, chosen), t[..., chosen])
        else:
            features = _channel_features(view, x_chunk, weight)
            equations.add(features, t.reshape(len(features), 1, -1))
    if equations.num_rows < equations.gram.shape[1]:
        raise UsageError(
            f"{name!r} has {equations.gram.shape[1]} unknowns per output, but the images give {equations.num_rows} "
            "positions: give more images, or fit='channel'"
        )
    outputs = len(weight)
    if kind == "lstsq":
        start = torch.cat((prior[0].reshape(view.groups, -1, view.fan_in), prior[1].reshape(view.groups, -1, 1)), 2).mT
        theta = equations.solve(start, RIDGE, zero_sum=view.is_standardized)
        own_weight, shift = theta[:, :-1].mT.reshape(weight.shape), theta[:, -1].reshape(outputs)
    else:
        factor = prior[2].repeat_interleave(outputs // view.groups)
        theta = torch.stack((factor, prior[1]), dim=1).unsqueeze(2)  # (outputs, 2, 1)
        if kind == "channel":
            theta = equations.solve(theta, _SINGULAR)
        own_weight = theta[:, 0].reshape(-1, *[1] * (weight.dim() - 1)) * weight.double()
        shift = theta[:, 1, 0]
    view.write(own_weight, shift)
    return equations.error(theta)


def _prior(view: LayerView, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The scaled weight and shift of the rule "layer", and its factors (groups,)."""
    square_sums = view.square_sums(x)
    a, h = view.factors(square_sums)
    factors = torch.where(a > 0, view.norms(square_sums) / a, 0).mean(dim=1)
    per_output, per_shift = (f.repeat_interleave(len(weight) // view.groups) for f in (factors, (1 / h).mean(dim=1)))
    scaled = per_output.reshape(-1, *[1] * (weight.dim() - 1)) * weight.double()
    return scaled, bias.double() * per_shift, factors


def _kernel_features(view: LayerView, x: Tensor, chosen: Tensor) -> Tensor:
    a, h = view.factors(view.square_sums(x)[:, chosen])
    return torch.cat((view.patches(x, chosen) * a.unsqueeze(1), h.unsqueeze(1)), dim=1)


def _channel_features(view: LayerView, x: Tensor, weight: Tensor) -> Tensor:
    a, h = view.factors(view.square_sums(x))
    responses = view.responses(x, weight) * a.unsqueeze(1)  # (groups, outputs per group, positions)
    return torch.stack((responses, h.unsqueeze(1).expand_as(responses)), dim=2).flatten(0, 1)


def _chunks(view: LayerView, x: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of a few images at a time."""
    per_image = targets[0].numel() * view.groups / view.layer.weight.shape[0] * view.fan_in
    size = max(1, int(_ENTRIES / max(per_image, targets[0].numel())))
    yield from zip(x.split(size), targets.split(size), strict=True)
