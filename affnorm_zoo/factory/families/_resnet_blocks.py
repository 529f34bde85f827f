"""timm's residual blocks with their end as one op: the last convolution's quotient, the shortcut and the ReLU.

In float32 its gradient needs no second convolution. The blocks keep timm's modules and parameters, and timm's class
names, by which FSDP finds what to shard. Where a hook or a tool could look between the three, they run as timm's.
"""

from collections.abc import Callable
from types import FunctionType

import torch
from timm.models import resnet
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from affnorm_zoo.factory.families._family import has_hooks


def _renamed(function: Callable, name: str) -> Callable:
    """The same function under another name; TorchScript compiles a method under the name that its function has."""
    twin = FunctionType(function.__code__, function.__globals__, name)
    twin.__annotations__ = function.__annotations__
    return twin


class BasicBlock(resnet.BasicBlock):
    """timm's block of two convolutions."""

    forward_apart = _renamed(resnet.BasicBlock.forward, "forward_apart")

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self.forward_apart(x)
        else:  # noqa: RET505 TorchScript skips code only in an else branch
            if not _may_join(self, x, self.conv2, self.bn2, self.act2):
                return self.forward_apart(x)
            y = self.aa(self.act1(self.drop_block(self.bn1(self.conv1(x)))))
            return _join(self, x, self.conv2, y)


class Bottleneck(resnet.Bottleneck):
    """timm's block of three convolutions."""

    forward_apart = _renamed(resnet.Bottleneck.forward, "forward_apart")

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self.forward_apart(x)
        else:  # noqa: RET505 TorchScript skips code only in an else branch
            if not _may_join(self, x, self.conv3, self.bn3, self.act3):
                return self.forward_apart(x)
            y = self.act1(self.bn1(self.conv1(x)))
            y = self.aa(self.act2(self.drop_block(self.bn2(self.conv2(y)))))
            return _join(self, x, self.conv3, y)


def _may_join(block: nn.Module, x: Tensor, conv: nn.Module, norm: nn.Module, act: nn.Module) -> bool:
    """Whether nothing stands between the last convolution, the shortcut and the ReLU, and no hook looks there.

    An attention over channels and an active drop path stand there. A hook looks there. So do a tracer of modules, and a
    tool that has put its own ``forward`` on a module, as accelerate does to move weights.
    """
    drops = block.drop_path is not None and block.training and getattr(block.drop_path, "drop_prob", 0.0) > 0
    return (
        isinstance(x, Tensor)  # and no proxy of torch.fx
        and hasattr(conv, "forward_residual")
        and conv.activation == "none"
        and type(norm) is nn.Identity
        and type(act) is nn.ReLU
        and block.se is None
        and not drops
        and not any(has_hooks(module) or "forward" in module.__dict__ for module in (conv, norm, act))
        and not _has_any_global_hook()
    )


def _join(block: nn.Module, x: Tensor, conv: nn.Module, y: Tensor) -> Tensor:
    shortcut = x if block.downsample is None else block.downsample(x)
    return conv.forward_residual(y, shortcut)
