"""The steps, most valuable first: if time is short, the last ones are skipped."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from affnorm_zoo.benchmarks.gpu_evidence import measures
from affnorm_zoo.benchmarks.gpu_evidence.carry import find_data
from affnorm_zoo.benchmarks.gpu_evidence.record import StepRecord
from affnorm_zoo.benchmarks.gpu_evidence.sizes import Sizes
from affnorm_zoo.benchmarks.gpu_evidence.trainings import Contest, run_contest

RESNET50 = ("resnet50", "batchnorm", "patchnorm")
RESNET18 = ("resnet18", "batchnorm", "patchnorm")
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
    """

    name: str
    about: str
    seconds: float
    limit: float
    measure: Callable[[StepRecord, Sizes, Place], None]


def _plain(measure: Callable[[StepRecord, Sizes], None]) -> Callable[[StepRecord, Sizes, Place], None]:
    return lambda record, sizes, place: measure(record, sizes)  # noqa: ARG005 only trainings need a place


def _network(network: measures.Network, *precisions: str, compile_mode: str | None = None) -> Callable:
    return _plain(partial(measures.measure_network, network=network, precisions=precisions, compile_mode=compile_mode))


def _contest(contest: Contest) -> Callable[[StepRecord, Sizes, Place], None]:
    def measure(record: StepRecord, sizes: Sizes, place: Place) -> None:
        data = place.output / "data"
        packed, find = data / f"{contest.data}.safetensors", partial(find_data, place.carried, data)
        run_contest(record, sizes, contest, packed, find, place.output / "runs" / record.path.stem)

    return measure


RESNET18_CIFAR = Contest(
    config="configs/cifar10/resnet18_cifar.yaml",
    data="cifar10",
    contenders={
        "batchnorm": ("model.name=resnet18_cifar_batchnorm", "optim.lr=0.05"),
        "patchnorm_ws": ("model.name=resnet18_cifar_patchnorm_ws",),
        "patchnorm_ws_rms4": ("model.name=resnet18_cifar_patchnorm_ws", "model.kwargs.norm_scale=rms4"),
    },
)
RESNET20_CIFAR = Contest(
    config="configs/cifar10/resnet20_cifar.yaml",
    data="cifar10",
    contenders={
        "batchnorm": ("model.name=resnet20_cifar_batchnorm", "optim.lr=0.02"),
        "patchnorm_ws": ("model.name=resnet20_cifar_patchnorm_ws",),
        "patchnorm_ws_rms4": ("model.name=resnet20_cifar_patchnorm_ws", "model.kwargs.norm_scale=rms4"),
    },
)
RESNET50_IMAGENETTE = Contest(
    config="configs/imagenette/resnet50.yaml",
    data="imagenette",
    overrides=("data.crop=padded", "data.workers=0"),  # all images in the GPU's memory
    contenders={
        "batchnorm": ("model.name=resnet50",),
        "patchnorm_ws": ("model.name=resnet50_patchnorm_ws",),
    },
)

STEPS = (
    Step(
        name="ceilings", about="versions, and the speed of a copy and a matrix product",
        seconds=25, limit=90, measure=_plain(measures.measure_ceilings),
    ),
    Step(
        name="kernel_check", about="every kernel against float64",
        seconds=70, limit=180, measure=_plain(measures.check_kernels),
    ),
    Step(
        name="product_check", about="the fused product against float64, and timed against the library's",
        seconds=40, limit=120, measure=_plain(measures.check_products),
    ),
    Step(
        name="resnet50", about="ResNet-50 in mixed precision against its twin: compiled, eager, inference",
        seconds=130, limit=300, measure=_network(RESNET50, "amp_bfloat16"),
    ),
    Step(
        name="kernel_speed", about="bandwidth of every pass over that of a copy",
        seconds=30, limit=90, measure=_plain(measures.time_kernels),
    ),
    Step(
        name="train_resnet18_cifar", about="ResNet-18 on CIFAR-10, the same epochs as its twin",
        seconds=190, limit=300, measure=_contest(RESNET18_CIFAR),
    ),
    Step(
        name="kernel_tests", about="the project's own tests of the kernels",
        seconds=60, limit=180, measure=_plain(measures.run_kernel_tests),
    ),
    Step(
        name="resnet18", about="ResNet-18 likewise",
        seconds=80, limit=200, measure=_network(RESNET18, "amp_bfloat16"),
    ),
    Step(
        name="vit_small", about="ViT-S likewise",
        seconds=80, limit=200, measure=_network(VIT_SMALL, "amp_bfloat16"),
    ),
    Step(
        name="resnet50_bfloat16", about="ResNet-50 with bfloat16 weights",
        seconds=110, limit=300, measure=_network(RESNET50, "bfloat16"),
    ),
    Step(
        name="train_resnet20_cifar", about="ResNet-20 on CIFAR-10, the same epochs as its twin",
        seconds=190, limit=300, measure=_contest(RESNET20_CIFAR),
    ),
    Step(
        name="resnet50_graphs", about="ResNet-50 compiled with CUDA graphs",
        seconds=90, limit=240, measure=_network(RESNET50, "amp_bfloat16", compile_mode="reduce-overhead"),
    ),
    Step(
        name="train_resnet50_imagenette", about="ResNet-50 on Imagenette, the same epochs as its twin",
        seconds=190, limit=300, measure=_contest(RESNET50_IMAGENETTE),
    ),
    Step(
        name="resnet18_graphs", about="ResNet-18 compiled with CUDA graphs",
        seconds=60, limit=200, measure=_network(RESNET18, "amp_bfloat16", compile_mode="reduce-overhead"),
    ),
    Step(
        name="vit_small_graphs", about="ViT-S compiled with CUDA graphs",
        seconds=60, limit=200, measure=_network(VIT_SMALL, "amp_bfloat16", compile_mode="reduce-overhead"),
    ),
    Step(
        name="vit_small_bfloat16", about="ViT-S with bfloat16 weights",
        seconds=80, limit=200, measure=_network(VIT_SMALL, "bfloat16"),
    ),
    Step(
        name="resnet18_bfloat16", about="ResNet-18 with bfloat16 weights",
        seconds=80, limit=200, measure=_network(RESNET18, "bfloat16"),
    ),
)  # fmt: skip


def get_step(name: str) -> Step:
    """Find a step by name."""
    return next(step for step in STEPS if step.name == name)
