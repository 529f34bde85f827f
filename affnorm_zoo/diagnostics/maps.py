"""The factor of a gradient step at every position of a picture."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from affnorm_zoo.diagnostics.recording import Call, bare, hooked, in_full_precision
from affnorm_zoo.errors import UsageError
from affnorm_zoo.layers import affine_layers

_CHUNK = 16  # positions at a time; each holds a copy of the layer's gradient


def map_layers(model: nn.Module, image: Tensor) -> dict[str, tuple[int, int]]:
    """The layers that have a map, with the rows and columns of their outputs.

    Args:
        model: any torch model; see :func:`factor_map`.
        image: (1, C, H, W), as the model takes it.

    Returns:
        name -> (rows, columns), in the order of the calls: the linear and convolution layers that the model calls once,
        and whose output has more than one position.
    """
    planes = {name: _plane(bare(model), calls[0]) for name, calls in _record(model, image).items() if len(calls) == 1}
    return {name: plane for name, plane in planes.items() if plane is not None and math.prod(plane) > 1}


def factor_map(model: nn.Module, images: Tensor, layer: str, *, most: int = 32, seed: int = 0) -> Tensor:
    """Measure the factor by which a position's own gradient step moves the layer's output there.

    A step on the layer's parameters θ, from a cotangent g at the position p alone, moves z_p along g by

        ⟨Δz_p, -η g⟩ / ‖η g‖² = ‖(∂z_p/∂θ)ᵀ g‖² / ‖g‖²

    This is ‖x_p‖² + 1 for a plain layer with a bias, ‖x_p‖² without one, and c² for affine_like. The measurement
    assumes nothing about the layer. An activation that the layer applies itself is removed first.

    Args:
        model: any torch model, also one wrapped by :func:`torch.compile`. It is measured in evaluation mode; its own
            mode is restored.
        images: (N, C, H, W), as the model takes them.
        layer: one of :func:`map_layers`.
        most: rows and columns of the map; a layer with more positions is measured on a regular grid.
        seed: of g. All positions and images have the same g, so that the map shows the inputs only.

    Returns:
        (N, rows, columns), float64.

    Raises:
        UsageError: the model has no such layer, or the layer has no map.
        ValueError: the model is compiled in place.
    """
    calls = _record(model, images).get(layer, [])
    plane = _plane(bare(model), calls[0]) if len(calls) == 1 else None
    if plane is None or math.prod(plane) == 1:
        known = list(map_layers(model, images[:1]))
        raise UsageError(f"the layer {layer!r} has no map; the layers that have one are {', '.join(known) or 'none'}")
    call = calls[0]
    chosen = _grid(plane, most)
    skipped = call.g[0].numel() // call.g.shape[call.channel_axis] - math.prod(plane)  # class tokens come first
    with torch.no_grad(), in_full_precision(images):
        maps = [_factors(call, call.x[i : i + 1], chosen.flatten() + skipped, seed) for i in range(len(images))]
    return torch.stack(maps).view(-1, *chosen.shape)


def _factors(call: Call, x: Tensor, positions: Tensor, seed: int) -> Tensor:
    """The factor at these positions of one image, (positions,)."""
    parameters = {name: p.detach() for name, p in call.module.named_parameters()}
    z, pull = vjp(lambda p: call.pre_activation(p, x), parameters)[:2]
    channels_last = z.movedim(call.channel_axis, -1)
    g = torch.randn(channels_last.shape[-1], generator=torch.Generator().manual_seed(seed)).to(z)
    g = g / g.norm()
    numbers = torch.arange(channels_last[..., 0].numel(), device=z.device).view(channels_last.shape[:-1])

    def factor(position: Tensor) -> Tensor:
        cotangent = ((numbers == position).unsqueeze(-1) * g).movedim(-1, call.channel_axis)
        return torch.stack([gradient.double().square().sum() for gradient in pull(cotangent)[0].values()]).sum()

    return vmap(factor, chunk_size=_CHUNK)(positions.to(z.device)).cpu()


def _grid(plane: tuple[int, int], most: int) -> Tensor:
    """Numbers of the measured positions, (rows, columns), row by row over the plane."""
    axes = []
    for length in plane:
        step = math.ceil(length / most)
        axes.append(torch.arange((length - 1) % step // 2, length, step))  # as far from one edge as from the other
    return axes[0][:, None] * plane[1] + axes[1]


def _plane(model: Any, call: Call) -> tuple[int, int] | None:
    """Rows and columns of a layer's output, or None if its positions are no plane."""
    shape = [size for axis, size in enumerate(call.g.shape) if axis not in (0, call.channel_axis)]
    if len(shape) == 2:
        return shape[0], shape[1]
    if len(shape) != 1:
        return None
    count = shape[0] - getattr(model, "num_prefix_tokens", 0)  # of a transformer: the patches, row by row
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if grid is not None and math.prod(grid) == count:
        return tuple(grid)
    side = math.isqrt(max(count, 0))
    return (side, side) if side * side == count else None


@torch.no_grad()
def _record(model: nn.Module, images: Tensor) -> dict[str, list[Call]]:
    """The calls of each layer in one forward pass in evaluation mode; g is a tensor of the output's shape."""
    model = bare(model)
    names = {module: name for name, module in affine_layers(model)}
    calls: dict[str, list[Call]] = {}

    def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if len(output) != len(images):
            return  # windows of images, as in Swin, are no images
        x = inputs[0].detach().to(module.weight)
        calls.setdefault(names[module], []).append(Call(names[module], module, x.clone(), torch.empty_like(output)))

    was_training = model.training
    try:
        with hooked(names, hook):
            model.eval()(images)
    finally:
        model.train(was_training)
    return calls
