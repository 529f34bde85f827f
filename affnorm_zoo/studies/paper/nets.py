"""The paper's small networks. Their hidden layers take any of the compared maps; no map has parameters of its own."""

import math
import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from affnorm_zoo.errors import UsageError
from affnorm_zoo.layers import AffineLikeLinear, NormLikeLinear, PatchNormConv2d, affine_layers

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "leaky_relu": nn.LeakyReLU}
SLOPES = {"tanh": None, "leaky_relu": 0.01}

_DENSE = re.compile(r"(?P<activation>[a-z_]+)-(?P<depth>\d+)x(?P<width>\d+)")
_CONV = re.compile(r"(?P<activation>[a-z_]+)-(?P<channels>\d+(-\d+)*)-k(?P<kernel>\d+)-(?P<down>stride|pool)")


class RmsNormAll(nn.Module):
    """Divide each sample by the root mean square of all its entries, without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        mean_square = x.square().mean(tuple(range(1, x.ndim)), keepdim=True)
        return x * torch.rsqrt(mean_square + 1e-5)


# method -> the map in place of a hidden linear layer: (in_features, out_features) -> module
_LINEAR: dict[str, Callable[[int, int], nn.Module]] = {
    "none": nn.Linear,
    "batchnorm": lambda n, out: nn.Sequential(nn.BatchNorm1d(n, affine=False), nn.Linear(n, out)),
    "layernorm": lambda n, out: nn.Sequential(nn.LayerNorm(n, elementwise_affine=False), nn.Linear(n, out)),
    "rmsnorm": lambda n, out: nn.Sequential(RmsNormAll(), nn.Linear(n, out)),
    "norm_like": NormLikeLinear,
    "norm_like_half": NormLikeLinear,
    "affine_like": AffineLikeLinear,
    "affine_like_rms": partial(AffineLikeLinear, scale="rms"),
}

# method -> options of the convolution, or the norm before a plain one: channels -> module
_CONV_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),  # noqa: ARG005
    "batchnorm": lambda channels: nn.BatchNorm2d(channels, affine=False),
    "layernorm": lambda channels: nn.GroupNorm(1, channels, affine=False),
    "rmsnorm": lambda channels: RmsNormAll(),  # noqa: ARG005
}
_PATCH_NORMS: dict[str, dict[str, Any]] = {
    "patchnorm": {},
    "patchnorm_l2": {"variant": "norm_like"},
    "patchnorm_rms": {"scale": "rms"},
    "patchnorm_rms_gain": {"scale": "rms", "gain": True},
    "patchnorm_rms_ws": {"scale": "rms", "gain": True, "weight_standardization": True},
}
METHODS = tuple(dict.fromkeys([*_LINEAR, *_CONV_NORMS, *_PATCH_NORMS]))

# multiplies the learning rate of the grid: the factor of norm_like is c² + 1 = 2, that of affine_like c² = 1
RATE_FACTORS = {"norm_like_half": 0.5}


# how a network starts: with the variances of :func:`build_net`, or scaled by :func:`scale_outputs` after that
STARTS = ("fan_in", "unit_outputs")


def build_net(
    name: str,
    method: str,
    image_shape: tuple[int, ...],
    num_classes: int,
    seed: int,
    map_classifier: bool = False,
) -> nn.Module:
    """Build a network by name; the same seed gives the same weights with every method.

    Weights are normal with variance g²/n. n is the fan-in, g the gain of the activation before the layer. Biases are
    0. The method applies to all layers except the classifier, which is a plain linear layer unless ``map_classifier``.

    Args:
        name: ``ACTIVATION-DEPTHxWIDTH`` has DEPTH layers before the classifier.
            ``ACTIVATION-CHANNELS-...-kKERNEL-(stride|pool)`` has one convolution per number, then the mean over
            positions.
        method: one of :data:`METHODS`, or ``kappa=NUMBER`` for affine_like with c = max(1, κ) in dense networks.
        image_shape: (C, H, W).
        num_classes: outputs of the classifier.
        seed: of the weights.
        map_classifier: whether the classifier of a dense network takes the method too.

    Raises:
        UsageError: the name or the method is unknown, or this kind of network does not support the method.
    """
    if match := _DENSE.fullmatch(name):
        layers = _dense_layers(match, method, math.prod(image_shape), num_classes, map_classifier)
    elif match := _CONV.fullmatch(name):
        if map_classifier:
            raise UsageError(f"map_classifier is for dense networks, got {name!r}")
        layers = _conv_layers(match, method, image_shape[0], num_classes)
    else:
        raise UsageError(f"a net must read like tanh-3x64 or leaky_relu-8-16-k3-stride, got {name!r}")
    net = nn.Sequential(*layers)
    _initialise(net, match["activation"], torch.Generator().manual_seed(seed))
    return net


@torch.no_grad()
def scale_outputs(net: nn.Module, images: Tensor) -> None:
    """Divide each affine layer's weight by the RMS of its outputs on ``images``, so that this RMS becomes 1.

    One forward pass, in which every layer sees the outputs of scaled layers: all maps are linear in their weight while
    biases are 0. Batch norms use the statistics of these images.

    Raises:
        UsageError: a layer standardises its weight, whose length then has no effect.
    """

    def scale(layer: nn.Module, _: tuple, output: Tensor) -> Tensor:
        if getattr(layer, "weight_standardization", False):
            raise UsageError("the start unit_outputs is not for standardised weights; use fan_in")
        rms = output.square().mean().sqrt()
        layer.weight.div_(rms)
        return output / rms

    handles = [layer.register_forward_hook(scale) for _, layer in affine_layers(net)]
    net.train()(images)
    for handle in handles:
        handle.remove()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_running_stats()


def _dense_layers(
    match: re.Match[str], method: str, num_inputs: int, num_classes: int, map_classifier: bool
) -> list[nn.Module]:
    activation = _look_up(match["activation"], ACTIVATIONS, "activation")
    if method.startswith("kappa="):
        kappa = float(method.removeprefix("kappa="))
        scale = (max(1.0, kappa), kappa)

        def build(n: int, out: int) -> nn.Module:
            # κ = 0 is norm_like without its bias
            return AffineLikeLinear(n, out, scale=scale) if kappa else NormLikeLinear(n, out, bias=False)
    else:
        build = _look_up(method, _LINEAR, "method")
    sizes = [num_inputs] + [int(match["width"])] * int(match["depth"])
    layers: list[nn.Module] = [nn.Flatten()]
    for n, out in pairwise(sizes):
        layers += [build(n, out), activation()]
    classifier = build if map_classifier else nn.Linear
    return [*layers, classifier(sizes[-1], num_classes)]


def _conv_layers(match: re.Match[str], method: str, in_chans: int, num_classes: int) -> list[nn.Module]:
    activation = _look_up(match["activation"], ACTIVATIONS, "activation")
    _look_up(method, _CONV_NORMS | _PATCH_NORMS, "method")
    kernel, strided = int(match["kernel"]), match["down"] == "stride"
    channels = [in_chans, *map(int, match["channels"].split("-"))]
    layers: list[nn.Module] = []
    for index, (n, out) in enumerate(pairwise(channels)):
        # the first convolution has stride 1; each later one sees half the rows of the one before
        args = (n, out, kernel, 2 if index and strided else 1, kernel // 2)
        if index and not strided:
            layers.append(nn.MaxPool2d(2))
        if method in _PATCH_NORMS:
            layers.append(PatchNormConv2d(*args, **_PATCH_NORMS[method]))
        else:
            layers += [_CONV_NORMS[method](n), nn.Conv2d(*args)]
        layers.append(activation())
    return [*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], num_classes)]


@torch.no_grad()
def _initialise(net: nn.Module, activation: str, generator: torch.Generator) -> None:
    slope = SLOPES[activation]
    gain = 1.0 if slope is None else math.sqrt(2 / (1 + slope**2))
    for index, (_, layer) in enumerate(affine_layers(net)):
        # the first layer reads the image; for ReLU-like activations the later inputs have half the second moment
        layer_gain = 1.0 if index == 0 else gain
        weight: Any = layer.weight
        weight.normal_(std=layer_gain / math.sqrt(weight[0].numel()), generator=generator)
        if layer.bias is not None:
            layer.bias.zero_()


def _look_up(name: str, known: dict[str, Callable[..., nn.Module]] | dict, what: str):
    if name not in known:
        raise UsageError(f"{what} must be one of {', '.join(known)}, got {name!r}")
    return known[name]
