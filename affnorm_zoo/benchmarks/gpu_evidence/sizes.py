"""The sizes of the measurements: on a GPU, and in a rehearsal on a CPU that shows that every step runs."""

from dataclasses import dataclass

from affnorm_zoo.benchmarks.kernel_check import KernelCase

_RESNET50 = ((64, 112), (256, 56), (512, 28), (1024, 14), (2048, 7))  # channels and width of each stage's output


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of all steps.

    Args:
        copy_mib: size of the copied tensor, for the ceilings.
        matmul: sides of the matrix product, for the ceilings.
        checked: the kernels' images for error checks.
        timed: the kernels' images for bandwidths.
        kernel_tests: arguments of pytest.
        networks: name in a step -> architecture, batch size and pixels that are measured.
        contenders: most networks that a step compares, the standard one first.
        rounds, steps: turns of each network in a timing, and steps per turn.
        backend: of ``torch.compile``.
        processes: processes that share a sweep.
        most_seeds: most seeds of a sweep's arm.
        pack_workers: processes that decode a data set.
        overrides: overrides of all training configs.
    """

    copy_mib: int
    matmul: int
    checked: tuple[KernelCase, ...]
    timed: tuple[KernelCase, ...]
    kernel_tests: tuple[str, ...]
    networks: dict[str, tuple[str, int, int]]
    contenders: int
    rounds: int
    steps: int
    backend: str
    processes: int
    most_seeds: int
    pack_workers: int
    overrides: tuple[str, ...]


def _checked(layout: str) -> list[KernelCase]:
    """Real and odd widths, groups of four channels and of one, and every dtype."""
    stages = [KernelCase((8, channels, width, width), layout) for channels, width in _RESNET50]
    grouped = [
        KernelCase((8, 128, 56, 56), layout, groups=32),
        KernelCase((8, 1024, 7, 7), layout, groups=32),
        KernelCase((8, 96, 28, 28), layout, groups=96),
    ]
    odd = [KernelCase((3, 37, 13, 11), layout, dtype) for dtype in ("bfloat16", "float16", "float32")]
    others = [KernelCase((8, 256, 56, 56), layout, dtype) for dtype in ("float16", "float32")]
    return [*stages, *grouped, *odd, *others]


GPU = Sizes(
    copy_mib=1024,
    matmul=8192,
    checked=(*_checked("NHWC"), *_checked("NCHW")),
    timed=(
        *(KernelCase((256, channels, width, width)) for channels, width in _RESNET50),
        KernelCase((256, 256, 56, 56), "NCHW"),
        KernelCase((256, 128, 56, 56), groups=32),
    ),
    kernel_tests=("tests/kernels", "-m", "gpu", "-n", "8"),
    networks={
        "resnet50": ("resnet50", 256, 224),
        "resnet18": ("resnet18", 256, 224),
        "vit_small": ("vit_small_patch16_224", 256, 224),
    },
    contenders=3,
    rounds=12,
    steps=5,
    backend="inductor",
    processes=6,
    most_seeds=3,
    pack_workers=16,
    overrides=(
        "runtime.precision=bf16", "runtime.compile=true", "runtime.channels_last=true", "train.eval_epochs=1000",
        "checkpoint.every_epochs=1000", "checkpoint.every_minutes=0.5",  # the most that losing the machine may cost
    ),
)  # fmt: skip

REHEARSAL = Sizes(
    copy_mib=8,
    matmul=256,
    checked=(KernelCase((2, 8, 4, 4)), KernelCase((1, 8, 3, 5), "NCHW", "float32", groups=2)),
    timed=(KernelCase((1, 8, 4, 4)),),
    kernel_tests=("tests/kernels/test_elementwise.py", "-m", "gpu", "-k", "square_sum and NHWC and bfloat16"),
    networks={
        "resnet50": ("resnet20_cifar", 2, 32),
        "resnet18": ("resnet20_cifar", 2, 32),
        "vit_small": ("vit_nano_patch4_32", 2, 32),
    },
    contenders=2,
    rounds=1,
    steps=1,
    backend="eager",  # captures the graph and compiles nothing
    processes=1,
    most_seeds=1,
    pack_workers=0,
    overrides=(
        "train.epochs=1",
        "train.max_updates=2",
        "runtime.compile=false",
        "train.global_batch_size=4",
        "data.image_size=32",
        "data.hold_out=4",
        "optim.warmup_epochs=0",
        "optim.name=adamw",  # Muon's products are in bfloat16, which is slow on most CPUs
    ),
)
