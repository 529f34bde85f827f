from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim import Optimizer

from affnorm_zoo.layers import BoundLayer


def divide_bias_rates(optimizer: Optimizer, model: nn.Module) -> None:
    """Divide the learning rate of every affine_like layer's bias by its κ, through timm's ``lr_scale``.

    The layer adds c κ b / √(‖x‖² + κ²). An optimiser whose step size does not depend on the gradient's size, such as
    AdamW or Muon, steps b as far as any other parameter. The output then moves κ times as far as from the bias of a
    plain layer or batch norm. In plain gradient descent the factor belongs to the map: without it the divergence is no
    longer uniform.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, BoundLayer)]
    kappas = {layer.bias: kappa for layer in layers if (kappa := layer.inner_kappa()) is not None}
    for group in list(optimizer.param_groups):
        apart = defaultdict(list)
        for parameter in group["params"]:
            apart[kappas.get(parameter)].append(parameter)
        group["params"] = apart.pop(None, [])
        options = {name: value for name, value in group.items() if name != "params"}
        for kappa, parameters in apart.items():
            lr_scale = options.get("lr_scale", 1.0) / kappa
            optimizer.add_param_group(options | {"params": parameters, "lr_scale": lr_scale, "kappa": kappa})
    optimizer.param_groups = [group for group in optimizer.param_groups if group["params"]]


@contextmanager
def gradients_over_kappa(optimizer: Optimizer) -> Iterator[None]:
    """Inside the context, a bias whose learning rate is divided by κ has the gradient of κ b, 1/κ of its own.

    This is for operations that compare gradients across layers, such as clipping their norm. The gradient of b itself
    is κ times that of a plain layer's bias, and would outweigh all weights together.
    """
    divided = [group for group in optimizer.param_groups if "kappa" in group]
    pairs = [(p.grad, group["kappa"]) for group in divided for p in group["params"] if p.grad is not None]
    if not pairs:
        yield
        return
    gradients, kappas = map(list, zip(*pairs, strict=True))
    torch._foreach_div_(gradients, kappas)
    yield
    torch._foreach_mul_(gradients, kappas)
