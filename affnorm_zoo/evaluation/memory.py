import torch
from torch import Tensor, nn


def saved_bytes(model: nn.Module, *inputs: Tensor) -> int:
    """Bytes of the distinct storages that autograd keeps for the backward, without parameters and buffers."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    storages: dict[int, int] = {}
    alive = []  # a freed storage could pass its address to another

    def pack(t: Tensor) -> Tensor:
        alive.append(t)
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(*inputs)
    return sum(storages.values())
