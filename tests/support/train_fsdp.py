"""Two processes hold half of the weights each (FSDP 2): train, save, load into fresh shards, go on."""

import json
import os
import sys
from pathlib import Path

import timm
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2
from torch import distributed
from torch.distributed.fsdp import fully_shard

import affnorm_zoo  # noqa: F401
from affnorm_zoo.config import ModelConfig
from affnorm_zoo.evaluation import evaluate
from affnorm_zoo.training.ema import build_ema
from affnorm_zoo.training.state import Progress, RunState, save_state


def build(accelerator, name, optimizer):
    torch.manual_seed(0)
    model = timm.create_model("vit_nano_patch4_32_affinelike", img_size=8, embed_dim=24, depth=2, num_classes=4)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    steps = create_optimizer_v2(model, opt=optimizer, lr=1e-3)
    ema = build_ema(ModelConfig(name=name, ema_decay=0.5, ema_warmup=False), model, sharded=True)
    return RunState(accelerator, model, model, steps, ema, Progress())


def train(state, steps):
    for _ in range(steps):
        generator = torch.Generator().manual_seed(100 * state.progress.updates + distributed.get_rank())
        x, y = torch.randn(4, 3, 8, 8, generator=generator), torch.randint(4, (4,), generator=generator)
        torch.nn.functional.cross_entropy(state.model(x), y).backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.progress.updates += 1
        state.ema.update(state.bare_model, state.progress.updates)


def main(folder, optimizer):
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    state = build(accelerator, "live", optimizer)
    train(state, 3)
    content = state.gather()
    if rank == 0:
        save_state(content, folder)
    distributed.barrier()
    train(state, 2)

    resumed = build(accelerator, "fresh", optimizer)
    resumed.load(folder)
    assert resumed.progress.updates == 3
    train(resumed, 2)
    for weights in ("model_weights", "ema_weights"):
        ours, theirs = getattr(resumed, weights)(), getattr(state, weights)()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), weights
    live = state.model_weights()
    with state.ema.averaged(state.model) as averaged:
        assert not torch.equal(averaged.head.weight.full_tensor(), live["head.weight"])
    assert all(torch.equal(tensor, live[name]) for name, tensor in state.model_weights().items())
    average = state.ema_weights()
    if rank == 0:
        save_file(live, folder / "final.safetensors")
        save_file(average, folder / "final_ema.safetensors")
    check_evaluation(accelerator, state.model, folder)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    # the groups that shards hold on to can abort an interpreter that is shutting down
    os._exit(0)


def check_evaluation(accelerator, model, folder):
    """Shares of three and two images, two batches and one."""
    images, labels = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 3, 0])
    mine = range(accelerator.process_index, 5, 2)
    batches = [(images[list(part)], labels[list(part)]) for part in (mine[:2], mine[2:]) if len(part)]
    found = evaluate(model, batches, lambda x: x, accelerator)
    stops = evaluate(model, batches, lambda x: x, accelerator, lambda: accelerator.process_index == 1)
    assert stops is None
    if accelerator.is_main_process:
        (folder / "metrics.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
