"""The sizes of the measurements: on a GPU, and in a rehearsal on a CPU that shows that every step runs."""

from dataclasses import dataclass

from affnorm_zoo.benchmarks.kernel_check import KernelCase
from affnorm_zoo.benchmarks.product_check import Shape
from affnorm_zoo.kernels._launch import PRODUCT_TILES, ProductTile

_RESNET50 = ((64, 112), (256, 56), (512, 28), (1024, 14), (2048, 7))  # channels and width of each stage's output


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of all steps.

    Args:
        copy_mib: size of the copied tensor, for the ceilings.
        matmul: sides of the matrix product, for the ceilings.
        checked: the kernels' images for error checks.
        timed: the kernels' images for bandwidths.
        products, tiles, product_dtype: shapes, candidate tiles and dtype of the fused product.
        kernel_tests: arguments of pytest.
        networks: name in a step -> architecture, batch size and pixels that are measured.
        rounds, steps: turns of each network in a timing, and steps per turn.
        backend: of ``torch.compile``.
        train_seconds: training step -> seconds for all its runs; determines the number of epochs.
        max_epochs: most epochs of a run.
        overrides: overrides of all training configs.
    """

    copy_mib: int
    matmul: int
    checked: tuple[KernelCase, ...]
    timed: tuple[KernelCase, ...]
    products: tuple[Shape, ...]
    tiles: tuple[ProductTile, ...]
    product_dtype: str
    kernel_tests: tuple[str, ...]
    networks: dict[str, tuple[str, int, int]]
    rounds: int
    steps: int
    backend: str
    train_seconds: float
    max_epochs: int
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
    # the 1x1 convolutions of a ResNet-50 at 64 images, a ViT-S's layers at 128
    products=(
        (200704, 64, 256), (200704, 256, 64), (50176, 128, 512), (50176, 512, 128), (12544, 256, 1024),
        (12544, 1024, 256), (3136, 512, 2048), (3136, 2048, 512), (25216, 384, 1152), (25216, 384, 1536),
        (25216, 1536, 384),
    ),
    tiles=PRODUCT_TILES,
    product_dtype="bfloat16",
    kernel_tests=("tests/kernels", "-m", "gpu", "-n", "8"),
    networks={
        "resnet50": ("resnet50", 256, 224),
        "resnet18": ("resnet18", 256, 224),
        "vit_small": ("vit_small_patch16_224", 256, 224),
    },
    rounds=12,
    steps=5,
    backend="inductor",
    train_seconds=150.0,
    max_epochs=60,
    overrides=(
        "runtime.precision=bf16", "runtime.compile=true", "runtime.channels_last=true",
        "checkpoint.every_epochs=1000", "checkpoint.every_minutes=0.5",  # the most that losing the machine may cost
    ),
)  # fmt: skip

REHEARSAL = Sizes(
    copy_mib=8,
    matmul=256,
    checked=(KernelCase((2, 8, 4, 4)), KernelCase((1, 8, 3, 5), "NCHW", "float32", groups=2)),
    timed=(KernelCase((1, 8, 4, 4)),),
    products=((33, 20, 17),),
    tiles=(ProductTile(16, 16, 16, num_warps=4, num_stages=2),),
    product_dtype="float16",  # Triton's interpreter reads bfloat16 as integers in a matrix product
    kernel_tests=("tests/kernels/test_passes.py", "-m", "gpu", "-k", "square_sum and NHWC and bfloat16"),
    networks={
        "resnet50": ("resnet20_cifar", 2, 32),
        "resnet18": ("resnet20_cifar", 2, 32),
        "vit_small": ("vit_nano_patch4_32", 2, 32),
    },
    rounds=1,
    steps=1,
    backend="eager",  # captures the graph and compiles nothing
    train_seconds=0.0,
    max_epochs=1,
    overrides=(
        "train.max_updates=2",
        "train.global_batch_size=4",
        "data.image_size=32",
        "optim.warmup_epochs=0",
        "optim.name=adamw",  # Muon's products are in bfloat16, which is slow on most CPUs
    ),
)
