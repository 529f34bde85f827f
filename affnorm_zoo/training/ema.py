"""A moving average of the weights: timm's, or one of the shards if a process holds only a part of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from affnorm_zoo.config import ModelConfig


class ModelEma:
    """timm's average of a model on the model's device, with a state that can be saved.

    With warm-up the decay after k updates is 1 - (1 + k)^(-2/3), but at most ``decay``. Buffers are averaged too.
    """

    def __init__(self, model: nn.Module, decay: float, use_warmup: bool) -> None:
        self.average = ModelEmaV3(model, decay=decay, use_warmup=use_warmup)

    def update(self, model: nn.Module, num_updates: int) -> None:
        self.average.update(model, step=num_updates)

    @contextmanager
    def averaged(self, model: nn.Module) -> Iterator[nn.Module]:  # noqa: ARG002 as ShardEma
        """A model with the averaged weights, inside the context."""
        yield self.average.module

    def state_dict(self) -> dict[str, Tensor]:
        return self.average.module.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.average.module.load_state_dict(state)


class ShardEma:
    """The same average of a process's shards under FSDP 2. Sharded modules cannot be copied."""

    def __init__(self, model: nn.Module, decay: float, use_warmup: bool) -> None:
        # timm's formula for the decay, without its constructor, which copies the model
        self.decay = ModelEmaV3(nn.Linear(1, 1), decay=decay, use_warmup=use_warmup)
        self.shards = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, num_updates: int) -> None:
        weight = 1 - self.decay.get_decay(num_updates)
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                self.shards[name].lerp_(tensor.detach(), weight)
            else:
                self.shards[name].copy_(tensor)

    @contextmanager
    def averaged(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model itself, with the averaged weights inside the context."""
        self._swap(model)
        try:
            yield model
        finally:
            self._swap(model)

    def state_dict(self) -> dict[str, Tensor]:
        return self.shards

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, tensor in state.items():
            self.shards[name].copy_(tensor)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for name, tensor in model.state_dict().items():
            live = tensor.detach().clone()
            tensor.copy_(self.shards[name])
            self.shards[name].copy_(live)


def build_ema(config: ModelConfig, model: nn.Module, sharded: bool) -> ModelEma | ShardEma | None:
    """Start an average of a model's weights, if the config asks for one."""
    if config.ema_decay is None:
        return None
    return (ShardEma if sharded else ModelEma)(model, config.ema_decay, config.ema_warmup)
