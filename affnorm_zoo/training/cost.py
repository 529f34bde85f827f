"""The cost of a run, known before its first update."""

from dataclasses import dataclass

import torch

from affnorm_zoo.data import Preprocessing

# dense peak of one device in TFLOP/s, from the vendors' data sheets: bfloat16 or float16 with float32 sums; float32
_PEAK_TFLOPS = {
    "H200": (989.0, 67.0),
    "H100 80GB HBM3": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "A100": (312.0, 19.5),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
    "V100": (125.0, 15.7),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71.0, 35.6),
}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Sizes of a run: counts, and bytes per process.

    ``forward_flops`` counts a multiply-add of convolutions and matrix products as two; it leaves out the normalisers'
    own passes. ``activation_bytes`` are the tensors kept for the backward pass of one micro-batch.
    """

    preprocessing: Preprocessing
    parameters: int
    forward_flops: int  # per image
    updates_per_epoch: int
    total_updates: int
    global_batch_size: int
    micro_batch_size: int
    micro_batches: int
    num_processes: int
    learning_rate: float  # after scaling
    weight_bytes: int  # weights, gradients, the optimiser's state and the moving average
    activation_bytes: int

    def as_text(self) -> str:
        """The cost as readable lines."""
        return (
            f"images            {' x '.join(map(str, self.preprocessing.input_size))}, mean "
            f"{_rounded(self.preprocessing.mean)}, std {_rounded(self.preprocessing.std)}\n"
            f"parameters        {self.parameters / 1e6:.2f} M\n"
            f"forward           {self.forward_flops / 2e9:.2f} GMACs per image\n"
            f"batch             {self.global_batch_size} images per update: {self.num_processes} processes x "
            f"{self.micro_batches} micro-batches x {self.micro_batch_size}\n"
            f"updates           {self.updates_per_epoch} per epoch, {self.total_updates} in total\n"
            f"learning rate     {self.learning_rate:.3g} at its peak\n"
            f"memory            {(self.weight_bytes + self.activation_bytes) / 2**20:.0f} MiB per process: "
            f"{self.weight_bytes / 2**20:.0f} for weights, gradients and optimiser, "
            f"{self.activation_bytes / 2**20:.0f} for activations"
        )


def _rounded(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """The device's peak floating-point operations per second, if known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for known, (half, single) in _PEAK_TFLOPS.items():
        if known in name:
            return 1e12 * (half if precision in ("bf16", "fp16") else single)
    return None
