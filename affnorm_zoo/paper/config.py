from dataclasses import dataclass
from pathlib import Path

from affnorm_zoo.config import read_yaml, to_schema
from affnorm_zoo.config.require import require


@dataclass(frozen=True, kw_only=True)
class PaperConfig:
    """One experiment's grid. Every method is tuned over the same rates, by one run each, scored on images held out.

    Args:
        nets: names that :func:`affnorm_zoo.paper.nets.build_net` reads.
        methods: out of :data:`affnorm_zoo.paper.nets.METHODS`.
        rates: of plain gradient descent, constant over a run.
        seeds: runs at the tuned rate, scored on the test set; the tuning run has a seed of its own.
        epochs: over the training images.
        num_train: training images, drawn once; fewer where the data have fewer.
        num_val: training images held out to tune on; at most a fifth of what the data have.
        batch_sizes: the rate is tuned at the first; more than one only in the batch-size experiment.
        kappas: of the scale-invariance experiment.
        probes: test images to measure the divergence of trained nets on; 0 for not at all.
        fisher: training images to measure the natural cosine on, before and after training; 0 for not at all.
    """

    nets: tuple[str, ...]
    methods: tuple[str, ...]
    rates: tuple[float, ...]
    seeds: int = 5
    epochs: int = 5
    num_train: int = 20_000
    num_val: int = 5_000
    batch_sizes: tuple[int, ...] = (128,)
    kappas: tuple[float, ...] = ()
    probes: int = 0
    fisher: int = 0

    def __post_init__(self) -> None:
        for name in ("seeds", "epochs", "num_train", "num_val"):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        for name in ("nets", "rates", "batch_sizes"):
            require(len(getattr(self, name)) > 0, f"{name} must name at least one")


def load_paper_config(path: Path, quick: bool = False) -> PaperConfig:
    """Read one experiment's YAML; with ``quick``, its section of that name on top.

    Raises:
        UsageError: the file is missing or not YAML, or a key or value does not fit.
    """
    loaded = read_yaml(path, PaperConfig)
    overlay = loaded.pop("quick", {})
    return to_schema(PaperConfig, path, loaded, *([overlay] if quick else []))
