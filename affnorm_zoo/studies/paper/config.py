from dataclasses import dataclass
from pathlib import Path

from affnorm_zoo.config import read_yaml, to_schema
from affnorm_zoo.config.require import require
from affnorm_zoo.studies.paper.nets import STARTS
from affnorm_zoo.studies.paper.trial import OPTIMIZERS


@dataclass(frozen=True, kw_only=True)
class PaperConfig:
    """One experiment's grid. Every method is tuned over the same rates: one run per rate, scored on validation images.

    Args:
        nets: names that :func:`affnorm_zoo.studies.paper.nets.build_net` accepts.
        methods: names from :data:`affnorm_zoo.studies.paper.nets.METHODS`.
        rates: learning rates, constant over a run.
        seeds: runs at the tuned rate, scored on the test set; the tuning run has a different seed.
        epochs: passes over the training images.
        num_train: training images, drawn once; all that remain if the data have fewer.
        num_val: training images held out for tuning; at most a fifth of the data's training images.
        batch_sizes: the rate is tuned at the first; more than one only in the batch-size experiment.
        kappas: values of κ in the scale-invariance experiment.
        probes: test images to measure the divergence of trained networks on; 0 measures none.
        fisher: training images to measure the natural cosine on, before and after training; 0 measures none.
        optimizer: one of :data:`affnorm_zoo.studies.paper.trial.OPTIMIZERS`.
        start: one of :data:`affnorm_zoo.studies.paper.nets.STARTS`.
        map_classifier: whether the classifier of a dense network takes the method too.
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
    optimizer: str = "sgd"
    start: str = "fan_in"
    map_classifier: bool = False

    def __post_init__(self) -> None:
        for name in ("seeds", "epochs", "num_train", "num_val"):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        for name in ("nets", "rates", "batch_sizes"):
            require(len(getattr(self, name)) > 0, f"{name} must name at least one")
        for name, known in (("optimizer", tuple(OPTIMIZERS)), ("start", STARTS)):
            value = getattr(self, name)
            require(value in known, f"{name} must be one of {', '.join(known)}, got {value!r}")


def load_paper_config(path: Path, quick: bool = False) -> PaperConfig:
    """Read one experiment's YAML; with ``quick``, its section ``quick`` overrides the rest.

    Raises:
        UsageError: the file is missing or not YAML, or a key or value does not fit.
    """
    loaded = read_yaml(path, PaperConfig)
    overlay = loaded.pop("quick", {})
    return to_schema(PaperConfig, path, loaded, *([overlay] if quick else []))
