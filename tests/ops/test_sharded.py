"""FSDP2 on two CPU processes computes the gradients of one."""

import os

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from shallow import shallow
from torch.distributed.fsdp import fully_shard

import affnorm_zoo  # noqa: F401

NAMES = ["resnet20_cifar_patchnorm_ws", "vit_nano_patch4_32_affinelike"]


def shard_and_compare(rank, name, store):
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{store}")
    torch.manual_seed(0)
    model, reference = (timm.create_model(name, **shallow(name)) for _ in range(2))
    reference.load_state_dict(model.state_dict())
    x, g = torch.randn(4, 3, 32, 32), torch.randn(4, 10)
    (reference(x) * g).sum().backward()
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    for block in [*model.modules()]:
        if type(block).__name__ in ("BasicBlock", "Block"):
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    half = slice(2 * rank, 2 * rank + 2)
    (model(x[half]) * g[half]).sum().backward()
    for (key, p), expected in zip(model.named_parameters(), reference.parameters(), strict=True):
        whole = 2 * p.grad.full_tensor()  # FSDP takes the mean over the processes
        torch.testing.assert_close(
            whole, expected.grad, rtol=1e-3, atol=1e-4 * expected.grad.abs().max().item(), msg=key
        )
    dist.barrier()
    dist.destroy_process_group()
    # the groups that shards hold on to can abort an interpreter that is shutting down
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_fully_sharded_gradients(name, tmp_path):
    mp.spawn(shard_and_compare, args=(name, str(tmp_path / "store")), nprocs=2)
