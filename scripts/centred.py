"""Experiment: PatchNorm on centred inputs, z_p = c (W∗(x - μ) + κ b)_p / √(‖(x-μ)_p‖² + κ²), one μ per input channel.

    python scripts/centred.py CIFAR10 --output docs/divergence/centred.json

CIFAR10 is a folder with train/CLASS and test/CLASS. Each arm is tuned on held-out training images over the same rates.
Three seeds at its best rate are then scored on the test images. Finished runs are kept.
"""

import json
import time
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import click
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from affnorm_zoo.config import DataConfig, OptimConfig
from affnorm_zoo.diagnostics import DivergenceMeter, measure_step, summed_cross_entropy
from affnorm_zoo.evidence.environment import describe_environment
from affnorm_zoo.factory import bound_layers
from affnorm_zoo.studies.images import Split, load_splits
from affnorm_zoo.training.builders import build_optimizer, build_schedule

COUNTS = {"train": 10_000, "held_out": 5_000, "test": 10_000}
BATCH_SIZE = 128
EPOCHS = {"tuning": 1, "final": 3}
RATES = (0.01, 0.02, 0.05)
SEEDS = (1, 2, 3)
SHIFTS = ("slow", "batch", "learned")
ARMS = (
    *("batchnorm/none", "patchnorm/none", "patchnorm_ws/none"),
    *(f"patchnorm/{shift}" for shift in SHIFTS),
    "patchnorm_ws/slow",
)
SLOW, FAST = 0.01, 0.1  # weight of a new batch in the running mean


class Centre:
    """Pre-hook of a layer: takes μ from its input (N, C, H, W).

    Args:
        layer: gets the buffer or parameter ``shift`` (C,).
        how: ``"slow"``, a running mean in training and evaluation; ``"batch"``, the batch's own mean in training and a
            running mean in evaluation; ``"learned"``, a parameter that starts at 0.
    """

    def __init__(self, layer: nn.Module, how: str) -> None:
        self.how, self.count = how, 0
        zeros = torch.zeros(layer.in_channels)
        if how == "learned":
            layer.register_parameter("shift", nn.Parameter(zeros))
        else:
            layer.register_buffer("shift", zeros)

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        (x,) = inputs
        shift = layer.shift
        if self.how != "learned" and layer.training:
            batch = x.mean((0, 2, 3))
            self.count += 1
            weight = max(SLOW if self.how == "slow" else FAST, 1 / self.count)
            shift.lerp_(batch.detach(), weight)
            shift = batch if self.how == "batch" else shift.clone()
        return x - shift.view(-1, 1, 1)


def build(arm: str) -> nn.Module:
    """The arm's ResNet-20 at initialisation."""
    normalizer, how = arm.split("/")
    model = timm.create_model(f"resnet20_cifar_{normalizer}").to(memory_format=torch.channels_last)
    if how != "none":
        for layer in bound_layers(model):
            layer.register_forward_pre_hook(Centre(layer, how))
    return model


def halved(split: Split, index: Tensor | slice) -> Tensor:
    """Images of half the size, (N, 3, 16, 16)."""
    return F.avg_pool2d(split.batch(index), 2).contiguous(memory_format=torch.channels_last)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored at random, and moved by up to 2 px."""
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    images = F.pad(torch.where(mirrored, images.flip(3), images), (2, 2, 2, 2))
    top, left = torch.randint(5, (2,), generator=generator).tolist()
    return images[..., top : top + 16, left : left + 16].contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """Top-1 in per cent."""
    model.eval()
    logits = [model(halved(split, slice(at, at + 500))) for at in range(0, len(split), 500)]
    return 100 * (torch.cat(logits).argmax(1) == split.labels).double().mean().item()


def divergence(model: nn.Module, optimizer: torch.optim.Optimizer, split: Split) -> dict[str, float]:
    """Medians over the layers, on 16 images (the factor) and 64 images (the step)."""
    few, images = halved(split, slice(0, 16)), halved(split, slice(0, 64))
    model.eval()
    meter = DivergenceMeter(model, summed_cross_entropy)
    meter.update(few, split.labels[:16])
    rows = meter.summary()
    steps = [s.summary() for s in measure_step(model, optimizer, images, split.labels[:64], F.cross_entropy)]
    median = lambda values: sorted(values)[len(values) // 2]  # noqa: E731
    return {
        "cv": median([row["cv"] for row in rows]),
        "samples": median([row["interference"]["mean"] for row in rows]),
        "step": median([step["cosine"] for step in steps]),
        "moving": median([step["moving_cosine"] for step in steps]),
    }


def run(arm: str, rate: float, seed: int, kind: str, splits: dict[str, Split]) -> dict[str, object]:
    """Train and score one network."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model, train = build(arm), splits["train"]
    updates = len(train) // BATCH_SIZE
    optim = OptimConfig(name="muon", lr=rate, bias_over_kappa=True, weight_decay=0.05, warmup_epochs=0.25)
    optimizer = build_optimizer(optim, model, BATCH_SIZE)
    schedule = build_schedule(optim, optimizer, EPOCHS[kind], updates)
    result = {"arm": arm, "rate": rate, "seed": seed, "kind": kind}
    measures = kind == "final" and seed == SEEDS[0]
    if measures:
        result["before"] = divergence(model, optimizer, splits["test"])
    for epoch in range(EPOCHS[kind]):
        model.train()
        order = torch.randperm(len(train), generator=generator)
        for update in range(updates):
            schedule.step_update(epoch * updates + update)
            index = order[update * BATCH_SIZE : (update + 1) * BATCH_SIZE]
            loss = F.cross_entropy(model(augmented(halved(train, index), generator)), train.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    result["top1"] = accuracy(model, splits["test" if kind == "final" else "held_out"])
    if measures:
        result["after"] = divergence(model, optimizer, splits["test"])
    return {**result, "seconds": round(time.perf_counter() - start, 1)}


@click.command()
@click.argument("cifar10")
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(cifar10: str, output: Path) -> None:
    """Run what is missing in OUTPUT."""
    torch.set_num_threads(1)
    config = DataConfig(path=cifar10, val_split="test")
    splits = load_splits(config, timm.create_model("resnet20_cifar_batchnorm").pretrained_cfg, COUNTS, 10)
    state = json.loads(output.read_text()) if output.exists() else {"environment": describe_environment(), "runs": []}

    def result(arm: str, rate: float, seed: int, kind: str) -> dict[str, object]:
        for row in state["runs"]:
            if (row["arm"], row["rate"], row["seed"], row["kind"]) == (arm, rate, seed, kind):
                return row
        state["runs"].append(run(arm, rate, seed, kind, splits))
        output.write_text(json.dumps(state, indent=1) + "\n")
        click.echo(json.dumps(state["runs"][-1]))
        return state["runs"][-1]

    best = {arm: max(RATES, key=lambda rate, arm=arm: result(arm, rate, 0, "tuning")["top1"]) for arm in ARMS}
    scores = {arm: [] for arm in ARMS}
    for seed, arm in product(SEEDS, ARMS):
        scores[arm].append(result(arm, best[arm], seed, "final")["top1"])
    for arm, values in scores.items():
        click.echo(f"{arm:22} rate {best[arm]:<6} {mean(values):.2f} ± {stdev(values):.2f}")


if __name__ == "__main__":
    main()
