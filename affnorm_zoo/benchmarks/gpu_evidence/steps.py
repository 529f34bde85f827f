"""The steps, most valuable first: if time is short, the last ones are skipped."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from pathlib import Path

from affnorm_zoo.benchmarks.gpu_evidence import measures
from affnorm_zoo.benchmarks.gpu_evidence.carry import find_data
from affnorm_zoo.benchmarks.gpu_evidence.record import StepRecord
from affnorm_zoo.benchmarks.gpu_evidence.sizes import Sizes
from affnorm_zoo.benchmarks.gpu_evidence.trainings import train_sweep

RESNET50 = ("resnet50", "batchnorm", "patchnorm", "patchnorm_ws")
RESNET18 = ("resnet18", "batchnorm", "patchnorm", "patchnorm_ws")
VIT_SMALL = ("vit_small", "layernorm", "affinelike")


@dataclass(frozen=True)
class Place:
    """The folders of a step: the carried one, if any, and the folder of results."""

    carried: Path | None
    output: Path


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step.

    Args:
        name: name of its result file.
        about: a one-line description.
        seconds: expected duration including the process start; an estimate until measured on a GPU.
        limit: seconds after which the step is stopped.
        measure: fills the record.
        alone: whether nothing else may run meanwhile, because the step times something.
    """

    name: str
    about: str
    seconds: float
    limit: float
    measure: Callable[[StepRecord, Sizes, Place], None]
    alone: bool = True


def _plain(measure: Callable[[StepRecord, Sizes], None]) -> Callable[[StepRecord, Sizes, Place], None]:
    return lambda record, sizes, place: measure(record, sizes)  # noqa: ARG005 only trainings need a place


def _network(network: measures.Network, *precisions: str, compile_mode: str | None = None) -> Callable:
    return _plain(partial(measures.measure_network, network=network, precisions=precisions, compile_mode=compile_mode))


def _compile(network: measures.Network) -> Step:
    """Compile a network's contenders for the step that times them, which then finds their code in a cache."""
    return Step(
        name=f"compile_{network[0]}",
        about=f"the contenders of {network[0]}, into the compiler's cache",
        seconds=120,
        limit=300,
        measure=_plain(partial(measures.compile_network, network=network)),
        alone=False,
    )


def _train(sweep: str, data: str, about: str) -> Step:
    """The runs of a sweep; those that the limit cuts off resume in the next call."""

    def measure(record: StepRecord, sizes: Sizes, place: Place) -> None:
        folder = place.output / "data"
        packed, find = folder / f"{data}.safetensors", partial(find_data, place.carried, folder, data)
        output = place.output / "sweeps" / sweep
        train_sweep(record, sizes, Path("configs/sweeps", f"{sweep}.yaml"), packed, find, output)

    return Step(name=f"train_{sweep}", about=about, seconds=150, limit=400, measure=measure)


STEPS = (
    Step(
        name="kernel_check", about="every kernel against float64",
        seconds=70, limit=180, measure=_plain(measures.check_kernels), alone=False,
    ),
    Step(
        name="kernel_tests", about="the project's own tests of the kernels",
        seconds=90, limit=200, measure=_plain(measures.run_kernel_tests), alone=False,
    ),
    *map(_compile, (RESNET50, RESNET18, VIT_SMALL)),
    Step(
        name="ceilings", about="versions, and the speed of a copy and a matrix product",
        seconds=20, limit=90, measure=_plain(measures.measure_ceilings),
    ),
    Step(
        name="resnet50", about="ResNet-50 in mixed precision against its twin: compiled, eager, inference",
        seconds=90, limit=300, measure=_network(RESNET50, "amp_bfloat16"),
    ),
    Step(
        name="kernel_speed", about="bandwidth of every pass over that of a copy",
        seconds=30, limit=90, measure=_plain(measures.time_kernels),
    ),
    Step(
        name="resnet18", about="ResNet-18 likewise",
        seconds=50, limit=200, measure=_network(RESNET18, "amp_bfloat16"),
    ),
    Step(
        name="vit_small", about="ViT-S likewise",
        seconds=50, limit=200, measure=_network(VIT_SMALL, "amp_bfloat16"),
    ),
    *starmap(_train, (
        ("cifar10_resnet18_e15", "cifar10", "ResNet-18 on CIFAR-10 against its twin"),
        ("cifar10_resnet20_e60", "cifar10", "ResNet-20 on CIFAR-10, the networks to publish"),
        ("cifar10_vit_nano_e60", "cifar10", "a small ViT on CIFAR-10, the networks to publish"),
        ("cifar10_resnet20_e30", "cifar10", "ResNet-20 on CIFAR-10 against its twins, tuned, three seeds each"),
        ("cifar100_resnet20_e30", "cifar100", "the same on CIFAR-100"),
        ("cifar10_vit_nano_muon", "cifar10", "a small ViT on CIFAR-10 against its twins, tuned, three seeds each"),
        ("cifar10_vit_nano_adamw", "cifar10", "the same under AdamW"),
        ("cifar100_vit_nano_e30", "cifar100", "a small ViT on CIFAR-100 against its twin, tuned, three seeds each"),
    )),
    Step(
        name="resnet50_graphs", about="ResNet-50 compiled with CUDA graphs",
        seconds=90, limit=240, measure=_network(RESNET50, "amp_bfloat16", compile_mode="reduce-overhead"),
    ),
    Step(
        name="resnet50_bfloat16", about="ResNet-50 with bfloat16 weights",
        seconds=110, limit=300, measure=_network(RESNET50, "bfloat16"),
    ),
    Step(
        name="vit_small_graphs", about="ViT-S compiled with CUDA graphs",
        seconds=60, limit=200, measure=_network(VIT_SMALL, "amp_bfloat16", compile_mode="reduce-overhead"),
    ),
    Step(
        name="vit_small_bfloat16", about="ViT-S with bfloat16 weights",
        seconds=80, limit=200, measure=_network(VIT_SMALL, "bfloat16"),
    ),
)  # fmt: skip


def get_step(name: str) -> Step:
    """Find a step by name."""
    return next(step for step in STEPS if step.name == name)
