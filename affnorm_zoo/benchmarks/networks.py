"""Compare networks: their steps are interleaved, so a slow machine slows all of them alike."""

import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from affnorm_zoo.benchmarks.rivals import RIVALS
from affnorm_zoo.benchmarks.small_layers import LAYERS, small_layers
from affnorm_zoo.benchmarks.turns import summarise
from affnorm_zoo.evaluation.memory import saved_bytes
from affnorm_zoo.factory import bound_layers, norm_layer

NUM_CLASSES = 1000
# the norm of timm's own architecture, by the letters that its name begins with
STANDARD = {
    **dict.fromkeys(("resnet", "resnetv", "efficientnet", "mobilenetv", "regnety", "densenet"), "batchnorm"),
    **dict.fromkeys(("vit", "deit", "eva", "beit", "swin", "swinv", "convnext", "mixer", "gmlp"), "layernorm"),
    "resmlp": "affine",  # a factor and a shift per channel
}
OPAQUE = ", opaque"  # appended to a normaliser's name: its layers are opaque to the compiler
# appended likewise: another attention
MIXED, RECOMPUTED = ", mixed attention", ", recomputed attention"
COMPILE_MODES = ("default", "max-autotune-no-cudagraphs", "max-autotune", "reduce-overhead")
CUDA_GRAPH_MODES = ("max-autotune", "reduce-overhead")
# timm's names -> dtype of weights and images, and dtype of the arithmetic if autocast sets another
PRECISIONS = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "float16": (torch.float16, None),
    "amp_bfloat16": (torch.float32, torch.bfloat16),
    "amp_float16": (torch.float32, torch.float16),
}


def build(architecture: str, normalizer: str) -> nn.Module:
    """Build an architecture with a normaliser, or as one of the rivals.

    With its standard norm this is timm's own model, if timm has it.
    """
    if normalizer in RIVALS:
        return RIVALS[normalizer](architecture, NUM_CLASSES)
    family = architecture.partition("_")[0].rstrip("0123456789d")
    if architecture in LAYERS:
        return small_layers(architecture, normalizer, NUM_CLASSES)
    plain, _, kind = normalizer.partition(", ")
    own = f"{architecture}_{plain}"
    if timm.is_model(own):
        options = {"attention": kind.removesuffix(" attention")} if kind else {}
        return timm.create_model(own, num_classes=NUM_CLASSES, **options)
    if normalizer == STANDARD.get(family):
        return timm.create_model(architecture, num_classes=NUM_CLASSES)
    layout = "NCHW" if family == "resnet" else "NLC"
    return timm.create_model(architecture, num_classes=NUM_CLASSES, norm_layer=norm_layer(normalizer, layout=layout))


class Bench:
    """One batch, and the steps timed on it.

    Args:
        architecture: one of timm that the zoo also has, or one of ``LAYERS``.
        batch_size: images of the random batch.
        img_size: their size in pixels; None takes the size that the architecture is made for, 4 for ``LAYERS``.
        device: device of the measurement.
        precision: one of ``PRECISIONS``; ``"amp_bfloat16"`` is mixed-precision training.
        rounds: turns of each contender; one more at the start is a warm-up and is not counted.
        steps: steps per turn, between two device synchronisations.
        compile_mode, backend: options of ``torch.compile``.
    """

    def __init__(
        self,
        architecture: str,
        batch_size: int,
        img_size: int | None,
        device: torch.device,
        precision: str,
        rounds: int,
        *,
        steps: int = 1,
        compile_mode: str = "default",
        backend: str = "inductor",
    ) -> None:
        self.architecture = architecture
        if img_size is None:
            img_size = 4 if architecture in LAYERS else timm.get_pretrained_cfg(architecture).input_size[-1]
        self.batch_size, self.img_size, self.device = batch_size, img_size, device
        self.precision, self.rounds, self.steps = precision, rounds, steps
        self.compile_mode, self.backend = compile_mode, backend
        self.dtype, self.autocast_dtype = PRECISIONS[precision]
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch_size, 3, img_size, img_size, generator=generator)
        self.images = images.to(device, self.dtype).contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(NUM_CLASSES, (batch_size,), generator=generator).to(device)

    def model(self, normalizer: str) -> nn.Module:
        """Build a contender in the batch's layout and precision."""
        model = build(self.architecture, normalizer.removesuffix(OPAQUE)).to(self.device, self.dtype)
        return model.to(memory_format=torch.channels_last)

    def compile(self, model: nn.Module, normalizer: str) -> Any:
        """Compile a contender into one graph. In an opaque one, the normalised layers run as in eager mode."""
        is_opaque = normalizer.endswith(OPAQUE)
        if is_opaque:
            for layer in bound_layers(model):
                layer.forward = torch.compiler.disable(layer.forward)
        # only Inductor has modes
        mode = self.compile_mode if self.backend == "inductor" else None
        return torch.compile(model, fullgraph=not is_opaque, mode=mode, backend=self.backend)

    def autocast(self) -> torch.autocast:
        """Autocast to the precision of the arithmetic, if it differs from that of the weights."""
        return torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def train_step(self, model: nn.Module) -> Callable[[], None]:
        """Forward, loss and backward."""

        def step() -> None:
            torch.compiler.cudagraph_mark_step_begin()
            model.zero_grad(set_to_none=True)
            with self.autocast():
                logits = model(self.images)
            F.cross_entropy(logits.float(), self.labels).backward()

        return step

    def infer_step(self, model: nn.Module) -> Callable[[], None]:
        """Forward without gradients."""

        def step() -> None:
            torch.compiler.cudagraph_mark_step_begin()
            with torch.inference_mode(), self.autocast():
                model(self.images)

        return step

    def train(self, normalizers: list[str], compiled: bool) -> list[dict[str, Any]]:
        """Time a training step of each contender; ratios are to the first one."""
        steps: dict[str, Callable[[], None]] = {}
        facts: dict[str, dict[str, float]] = {}
        for name in normalizers:
            others = self.allocated_bytes()  # earlier contenders stay on the device for the timing
            model = self.model(name).train()
            facts[name] = {"param_count": sum(p.numel() for p in model.parameters()) / 1e6}
            network = self.compile(model, name) if compiled else model
            if not compiled or self.compile_mode not in CUDA_GRAPH_MODES:  # hooks prevent recording a graph
                with self.autocast():
                    facts[name]["saved_mib"] = saved_bytes(network, self.images) / 2**20
            steps[name] = self.train_step(network)
            if self.device.type == "cuda":
                facts[name]["peak_mib"] = (self.peak_bytes(steps[name]) - others) / 2**20
        rows = self.rows("train", self.interleave(steps), compiled)
        reference = facts[normalizers[0]]
        for row, name in zip(rows, normalizers, strict=True):
            ratios = {
                f"{kind}_ratio": facts[name][f"{kind}_mib"] / reference[f"{kind}_mib"]
                for kind in ("saved", "peak")
                if f"{kind}_mib" in facts[name]
            }
            row |= facts[name] | ratios
        return rows

    def infer(self, normalizers: list[str], compiled: bool) -> list[dict[str, Any]]:
        """Time inference. Batch norm comes first folded into its convolutions, and again unfolded; no rivals run."""
        models: dict[str, Any] = {}
        for name in normalizers:
            if name in RIVALS:  # in inference they are the network that they stand for
                continue
            model = self.model(name).eval()
            if name == "batchnorm":
                models["batchnorm, folded"] = fuse(model)
            models[name] = model
        if compiled:
            models = {name: self.compile(model, name) for name, model in models.items()}
        times = self.interleave({name: self.infer_step(model) for name, model in models.items()})
        return self.rows("infer", times, compiled)

    def interleave(self, steps: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
        """Seconds per step of every turn, with the contenders taking turns."""
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(self.rounds + 1):
            for name, step in steps.items():
                self.synchronize()
                start = time.perf_counter()
                for _ in range(self.steps):
                    step()
                self.synchronize()
                times[name].append((time.perf_counter() - start) / self.steps)
        return {name: seconds[1:] for name, seconds in times.items()}

    def rows(self, mode: str, times: dict[str, list[float]], compiled: bool) -> list[dict[str, Any]]:
        """One row per contender; ratios are to the first one."""
        rows: list[dict[str, Any]] = [
            {
                "model": self.architecture,
                "normalizer": name,
                "mode": mode,
                "compiled": compiled,
                "precision": self.precision,
                **({"compile_mode": self.compile_mode} if compiled and self.compile_mode != "default" else {}),
                f"{mode}_batch_size": self.batch_size,
                f"{mode}_img_size": self.img_size,
                "step_times": [1e3 * second for second in seconds],
            }
            for name, seconds in times.items()
        ]
        return summarise(mode, rows)

    def peak_bytes(self, step: Callable[[], None]) -> int:
        """Peak bytes on the GPU during one step, after two steps that choose algorithms and record graphs."""
        for _ in range(2):
            step()
        self.synchronize()
        torch.cuda.reset_peak_memory_stats()
        step()
        self.synchronize()
        return torch.cuda.max_memory_allocated()

    def allocated_bytes(self) -> int:
        """Bytes on the GPU now, without the batch."""
        if self.device.type != "cuda":
            return 0
        batch = sum(t.numel() * t.element_size() for t in (self.images, self.labels))
        return torch.cuda.memory_allocated() - batch

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
