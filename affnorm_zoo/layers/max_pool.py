import torch.fx
from timm.layers import register_notrace_module
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from affnorm_zoo.ops.max_pool import max_pool

torch.fx.wrap("max_pool")


@register_notrace_module
class LeanMaxPool2d(nn.MaxPool2d):
    """:class:`torch.nn.MaxPool2d` that saves only its input for the backward; see :mod:`affnorm_zoo.ops.max_pool`.

    Args:
        pool: the pooling to take over. It must not return indices or round its output's size up.
    """

    def __init__(self, pool: nn.MaxPool2d) -> None:
        if pool.return_indices or pool.ceil_mode:
            raise ValueError("a pooling with return_indices or ceil_mode cannot be made lean")
        window = [_pair(size) for size in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)]
        super().__init__(*window)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 the name is nn.MaxPool2d's
        return max_pool(input, self.kernel_size, self.stride, self.padding, self.dilation)
