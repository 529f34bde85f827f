from collections import defaultdict

from torch import nn
from torch.optim import Optimizer

from affnorm_zoo.layers import AffineLikeLinear, PatchNormConv2d


def divide_bias_rates(optimizer: Optimizer, model: nn.Module) -> None:
    """Divide the learning rate of every affine_like layer's bias by its κ, through timm's ``lr_scale``.

    The layer adds c κ b / √(‖x‖² + κ²). An optimiser whose steps have a size of their own, such as AdamW or Muon, steps
    b as far as any other parameter, and so the output κ times as far as the bias of a plain layer or batch norm would.
    In plain gradient descent the factor belongs to the map: without it the divergence is no longer uniform.
    """
    scales = {layer.bias: 1 / layer.kappa for layer in model.modules() if _has_inner_bias(layer)}
    for group in list(optimizer.param_groups):
        apart = defaultdict(list)
        for parameter in group["params"]:
            apart[scales.get(parameter, 1.0)].append(parameter)
        group["params"] = apart.pop(1.0, [])
        options = {name: value for name, value in group.items() if name != "params"}
        for scale, parameters in apart.items():
            own = options | {"params": parameters, "lr_scale": scale * options.get("lr_scale", 1.0)}
            optimizer.add_param_group(own)
    optimizer.param_groups = [group for group in optimizer.param_groups if group["params"]]


def _has_inner_bias(layer: nn.Module) -> bool:
    is_affine_like = isinstance(layer, AffineLikeLinear) or (isinstance(layer, PatchNormConv2d) and not layer.norm_like)
    return is_affine_like and layer.bias is not None
