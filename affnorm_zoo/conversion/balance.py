"""Scale the activations between layers to RMS 1, where the network computes the same with scaled ones.

A divergence-free layer compares ‖x_p‖ with κ, so the scale of its input decides how much it normalises. Trained
networks have any scale, and at an RMS of r a κ of 4√n normalises as 4√n/r does at RMS 1. If everything between two
layers is positively homogeneous, a(x/r) = a(x)/r, then dividing the weights of the first by r and multiplying those of
the second by r changes nothing else. Layers whose outputs are added have one r.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from affnorm_zoo.conversion.check import CONVOLUTIONS
from affnorm_zoo.conversion.pair import relative_error, tensors

# of one tensor, and positively homogeneous in it
_HOMOGENEOUS = {
    "relu", "relu_", "leaky_relu", "leaky_relu_", "dropout", "max_pool2d", "_max_pool2d", "avg_pool2d",
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "_adaptive_max_pool2d", "interpolate", "mean", "sum", "flatten",
    "view", "reshape", "permute", "transpose", "contiguous", "clone", "squeeze", "unsqueeze", "chunk", "split",
    "mul", "mul_", "div", "div_", "__mul__", "__rmul__", "__imul__", "__truediv__", "__itruediv__", "__getitem__",
}  # fmt: skip
_SUMS = {"add", "add_", "__add__", "__radd__", "__iadd__", "sub", "__sub__"}
_JOINED = {"cat", "concat", "concatenate", "stack"}
_FIXED = 0  # the group of what may not be scaled
_NUM_IMAGES = 64


class Groups(TorchFunctionMode):
    """Follows one forward pass, and finds which layers' outputs must have a common scale.

    Args:
        layers: the layers whose weights may be scaled, by name.

    ``squares`` has the mean square of every layer's inputs.
    """

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.layers = layers
        self._parents = [_FIXED, *range(1, len(layers) + 1)]
        self._group_of = WeakTensorKeyDictionary()
        self._is_inside = False  # a layer, which takes care of its own operations
        self._written = {name: group for group, name in enumerate(layers, 1)}
        self._read: dict[str, int] = {}
        self.squares: dict[str, float] = {}

    @property
    def read(self) -> dict[str, int]:
        """Per layer that has run, the group of its inputs."""
        return {name: self._find(group) for name, group in self._read.items()}

    @property
    def written(self) -> dict[str, int]:
        """Per layer, the group of its outputs."""
        return {name: self._find(group) for name, group in self._written.items()}

    def run(self, network: nn.Module, images: Tensor) -> None:
        """Follow a forward pass of ``network``, whose outputs may not be scaled."""
        handles = []
        for name, layer in self.layers.items():
            handles.append(layer.register_forward_pre_hook(self._before(name), with_kwargs=True))
            handles.append(layer.register_forward_hook(self._after(name)))
        try:
            with self:
                output = network(images)
        finally:
            for handle in handles:
                handle.remove()
        self._join([_FIXED, *self._groups(output)])

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._is_inside:
            groups = self._groups((args, kwargs))
            group = self._join(groups if self._keeps_scale(func, args, groups) else [_FIXED, *groups])
            for output in tensors(result):
                self._group_of[output] = group
        return result

    @staticmethod
    def _keeps_scale(func: Callable, args: tuple, groups: list[int]) -> bool:
        name = func.__name__
        if name in _SUMS:
            return all(isinstance(arg, Tensor) for arg in args[:2])
        return name in _JOINED or (name in _HOMOGENEOUS and len(groups) == 1)

    def _before(self, name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:  # noqa: ARG001
            self._is_inside = True
            (x,) = tensors((args, kwargs))
            self._read[name] = self._join([*self._groups(x), *([self._read[name]] if name in self._read else [])])
            self.squares[name] = float(x.detach().double().square().mean())

        return hook

    def _after(self, name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:  # noqa: ARG001
            self._group_of[output] = self._written[name]
            self._is_inside = False

        return hook

    def _groups(self, tree: Any) -> list[int]:
        return [self._group_of.get(tensor, _FIXED) for tensor in tensors(tree)]

    def _find(self, group: int) -> int:
        while self._parents[group] != group:
            group = self._parents[group]
        return group

    def _join(self, groups: Iterable[int]) -> int:
        roots = {self._find(group) for group in groups} or {_FIXED}
        for root in roots:
            self._parents[root] = min(roots)
        return min(roots)


@torch.no_grad()
def balance(reference: nn.Module, twin: nn.Module, fitted: set[str], images: Tensor) -> None:
    """Scale the activations of ``reference``, in place: the inputs of the fitted layers then have RMS 1 on average.

    Args:
        reference: the network with its norms folded; its outputs stay the same, but for rounding.
        twin: the network that is fitted to it; its layers that are not fitted are scaled alike.
        fitted: names of the layers that are.
        images: (N, C, H, W); the first ones are used.
    """
    layers = dict(_scalable(reference))
    groups = Groups(layers)
    groups.run(reference, images[:_NUM_IMAGES])
    factors = _factors(groups, fitted)
    before = tensors(reference(images[:2]))
    _scale((reference, twin), groups, factors, fitted)
    after = tensors(reference(images[:2]))
    # what TorchScript runs cannot be followed
    if not relative_error(list(zip(before, after, strict=True))) <= math.sqrt(torch.finfo(images.dtype).eps):
        _scale((reference, twin), groups, {group: 1 / factor for group, factor in factors.items()}, fitted)


def _factors(groups: Groups, fitted: set[str]) -> dict[int, float]:
    """Per group, the RMS of what the fitted layers read of it."""
    factors, read = {}, groups.read
    for group in set(read.values()) - {_FIXED}:
        squares = [groups.squares[name] for name in fitted if read.get(name) == group]
        rms = math.sqrt(sum(squares) / len(squares)) if squares else 1.0
        factors[group] = rms if 0 < rms < math.inf else 1.0
    return factors


def _scale(networks: tuple[nn.Module, nn.Module], groups: Groups, factors: dict[int, float], fitted: set[str]) -> None:
    """Divide what every group has by its factor."""
    read, written = groups.read, groups.written
    for name in groups.layers:
        into, out_of = factors.get(read.get(name, _FIXED), 1.0), factors.get(written[name], 1.0)
        for network in networks[:1] if name in fitted else networks:
            layer: Any = network.get_submodule(name)
            layer.weight.copy_(layer.weight.double() * (into / out_of))
            if layer.bias is not None:
                layer.bias.copy_(layer.bias.double() / out_of)


def _scalable(network: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """Plain layers with parameters of their own; any other module is followed operation by operation."""
    owners: dict[int, int] = {}
    for _, parameter in network.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for name, module in network.named_modules():
        if type(module) in (*CONVOLUTIONS, nn.Linear):
            own = [parameter for parameter in (module.weight, module.bias) if parameter is not None]
            if all(owners.get(id(parameter)) == 1 for parameter in own):
                yield name, module
