"""What people start fine-tuning from, given a network with trained batch norms."""

import copy
from collections.abc import Callable, Iterator

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from affnorm_zoo.conversion import convert

GROUP_SIZE = 8  # channels per group; divides the channels of every layer of both networks


def build_start(method: str, source: nn.Module, images: list[Tensor]) -> nn.Module:
    """A copy of ``source``, changed as the method asks.

    Args:
        method: one of :data:`METHODS`.
        source: a convolutional network whose batch norms follow their convolutions; it stays unchanged.
        images: batches without labels for methods that fit layers to data.
    """
    return METHODS[method](copy.deepcopy(source).eval(), images)


def set_training_mode(model: nn.Module, method: str) -> None:
    """Put the model into training mode; with ``frozen`` batch norm keeps its statistics, and trains γ and β."""
    model.train()
    if method == "frozen":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def _keep(model: nn.Module, images: list[Tensor]) -> nn.Module:  # noqa: ARG001
    return model


def _fold(model: nn.Module, images: list[Tensor]) -> nn.Module:  # noqa: ARG001
    """Multiply every batch norm into the convolution before it: the same function, without a norm."""
    for conv, name, norm in list(_norms(model)):
        before = model.get_submodule(conv)
        assert isinstance(before, nn.Conv2d), "batch norm stands behind a convolution"
        model.set_submodule(conv, fuse_conv_bn_eval(before, norm))
        _replace(model, name, norm, nn.Identity())
    return model


def _group(model: nn.Module, images: list[Tensor]) -> nn.Module:  # noqa: ARG001
    """Put a group norm in the place of every batch norm, with its γ and β."""
    for _, name, norm in list(_norms(model)):
        group = nn.GroupNorm(norm.num_features // GROUP_SIZE, norm.num_features, norm.eps)
        group.load_state_dict({"weight": norm.weight, "bias": norm.bias})
        _replace(model, name, norm, group)
    return model


def _twin(scale: str) -> Callable[[nn.Module, list[Tensor]], nn.Module]:
    """The one-shot conversion to PatchNorm at this scale."""
    return lambda model, images: convert(model, "patchnorm", images=images, scale=scale).model


def _norms(model: nn.Module) -> Iterator[tuple[str, str, nn.BatchNorm2d]]:
    """Every batch norm, with its name and that of the convolution before it, as the module tree has them."""
    conv = ""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            conv = name
        elif isinstance(module, nn.BatchNorm2d):
            yield conv, name, module


def _replace(model: nn.Module, name: str, norm: nn.BatchNorm2d, other: nn.Module) -> None:
    """Put ``other`` in the place of a norm, before the activation that timm's norms may hold."""
    act = getattr(norm, "act", None)
    model.set_submodule(name, other if act is None else nn.Sequential(other, act))


METHODS: dict[str, Callable[[nn.Module, list[Tensor]], nn.Module]] = {
    "batchnorm": _keep,
    "frozen": _keep,
    "folded": _fold,
    "groupnorm": _group,
    "patchnorm": _twin("rms"),
    "patchnorm4": _twin("rms4"),
}
