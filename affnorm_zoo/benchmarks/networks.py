"""Networks side by side: their steps interleaved in one process, so that what slows the machine slows all of them."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from affnorm_zoo.evaluation.memory import saved_bytes
from affnorm_zoo.factory import bound_layers, norm_layer
from affnorm_zoo.registry import get_normalizer

STANDARD = {"resnet": "batchnorm", "vit": "layernorm"}  # the norm of timm's own architecture
OPAQUE = ", opaque"  # behind a normaliser's name: the compiler does not see into its layers
COMPILE_MODES = ("default", "max-autotune-no-cudagraphs", "max-autotune", "reduce-overhead")


def build(architecture: str, normalizer: str) -> nn.Module:
    """Build an architecture with any normaliser; its standard norm gives timm's own model."""
    family = architecture.partition("_")[0].rstrip("0123456789d")
    if normalizer == STANDARD.get(family):
        return timm.create_model(architecture)
    if get_normalizer(normalizer).is_bound:
        return timm.create_model(f"{architecture}_{normalizer}")
    layout = "NCHW" if family == "resnet" else "NLC"
    return timm.create_model(architecture, norm_layer=norm_layer(normalizer, layout=layout))


class Bench:
    """One batch and the steps that are timed on it.

    Args:
        architecture: a timm ResNet or ViT that the zoo has too.
        batch_size, img_size: of the random batch; pixels.
        device: where it runs.
        dtype: of the model and the images.
        rounds: how often each contender runs; the first one warms up and is not counted.
        compile_mode: of ``torch.compile``.
    """

    def __init__(
        self,
        architecture: str,
        batch_size: int,
        img_size: int,
        device: torch.device,
        dtype: torch.dtype,
        rounds: int,
        compile_mode: str = "default",
    ) -> None:
        self.architecture = architecture
        self.batch_size, self.img_size = batch_size, img_size
        self.device, self.dtype, self.rounds, self.compile_mode = device, dtype, rounds, compile_mode
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch_size, 3, img_size, img_size, generator=generator)
        self.images = images.to(device, dtype).contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(1000, (batch_size,), generator=generator).to(device)

    def model(self, normalizer: str) -> nn.Module:
        """Build a contender, in the batch's layout and precision."""
        model = build(self.architecture, normalizer.removesuffix(OPAQUE)).to(self.device, self.dtype)
        return model.to(memory_format=torch.channels_last)

    def compile(self, model: nn.Module, normalizer: str) -> Any:
        """Compile a contender, in one graph; an opaque one around its normalised layers, which run as in eager mode."""
        is_opaque = normalizer.endswith(OPAQUE)
        if is_opaque:
            for layer in bound_layers(model):
                layer.forward = torch.compiler.disable(layer.forward)
        return torch.compile(model, fullgraph=not is_opaque, mode=self.compile_mode)

    def train_step(self, model: nn.Module) -> Callable[[], None]:
        """Forward, loss and backward."""

        def step() -> None:
            model.zero_grad(set_to_none=True)
            F.cross_entropy(model(self.images).float(), self.labels).backward()

        return step

    def infer_step(self, model: nn.Module) -> Callable[[], None]:
        """Forward without gradients."""

        def step() -> None:
            with torch.inference_mode():
                model(self.images)

        return step

    def train(self, normalizers: list[str], compiled: bool) -> list[dict[str, Any]]:
        """Time a training step of each contender; the first is the one that the others are divided by."""
        models = {name: self.model(name).train() for name in normalizers}
        saved = {}
        for name, model in models.items():
            models[name] = self.compile(model, name) if compiled else model
            saved[name] = saved_bytes(models[name], self.images)
        steps = {name: self.train_step(model) for name, model in models.items()}
        times = self.interleave(steps)
        rows = self.rows("train", times, compiled)
        for row, name in zip(rows, normalizers, strict=True):
            row["param_count"] = sum(p.numel() for p in models[name].parameters()) / 1e6
            row["saved_mib"] = saved[name] / 2**20
            row["saved_ratio"] = saved[name] / saved[normalizers[0]]
            if self.device.type == "cuda":
                row["peak_mib"] = self.peak(steps[name]) / 2**20
                row["peak_ratio"] = row["peak_mib"] / rows[0]["peak_mib"]
        return rows

    def infer(self, normalizers: list[str], compiled: bool) -> list[dict[str, Any]]:
        """Time inference; batch norm comes first and folded into its convolutions, and once more unfolded."""
        models: dict[str, Any] = {}
        for name in normalizers:
            model = self.model(name).eval()
            if name == "batchnorm":
                models["batchnorm, folded"] = fuse(model)
            models[name] = model
        if compiled:
            models = {name: self.compile(model, name) for name, model in models.items()}
        times = self.interleave({name: self.infer_step(model) for name, model in models.items()})
        return self.rows("infer", times, compiled)

    def interleave(self, steps: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
        """Seconds of every step, taken in turns."""
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(self.rounds + 1):
            for name, step in steps.items():
                self.synchronize()
                start = time.perf_counter()
                step()
                self.synchronize()
                times[name].append(time.perf_counter() - start)
        return {name: seconds[1:] for name, seconds in times.items()}

    def rows(self, mode: str, times: dict[str, list[float]], compiled: bool) -> list[dict[str, Any]]:
        """One row a contender, in timm's words where timm has one; ratios are to the first contender's median."""
        reference = next(iter(times.values()))
        rows = []
        for name, seconds in times.items():
            pairs = [ours / theirs for ours, theirs in zip(seconds, reference, strict=True)]
            median = statistics.median(seconds)
            rows.append(
                {
                    "model": self.architecture,
                    "normalizer": name,
                    "mode": mode,
                    "compiled": compiled,
                    "dtype": str(self.dtype).removeprefix("torch."),
                    f"{mode}_batch_size": self.batch_size,
                    f"{mode}_img_size": self.img_size,
                    f"{mode}_step_time": 1e3 * median,
                    f"{mode}_samples_per_sec": self.batch_size / median,
                    "step_time_min": 1e3 * min(seconds),
                    "step_time_max": 1e3 * max(seconds),
                    "n": len(seconds),
                    "ratio": median / statistics.median(reference),
                    "ratio_of_minima": min(seconds) / min(reference),
                    "ratio_quartiles": statistics.quantiles(pairs, n=4)[::2] if len(pairs) > 1 else pairs * 2,
                }
            )
        return rows

    def peak(self, step: Callable[[], None]) -> int:
        """Most bytes that one step allocates on the GPU, weights and all."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step()
        self.synchronize()
        return torch.cuda.max_memory_allocated()

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
