"""The former place of what :mod:`affnorm_zoo.training.builders` and :mod:`affnorm_zoo.runs.model` hold. Until 0.3.0."""

import warnings

from affnorm_zoo.runs.model import build_model as build_model
from affnorm_zoo.training.builders import build_loss as build_loss
from affnorm_zoo.training.builders import build_optimizer as build_optimizer
from affnorm_zoo.training.builders import build_schedule as build_schedule

warnings.warn(
    "affnorm_zoo.training.setup goes in 0.3.0: import from affnorm_zoo.training.builders, and build_model from "
    "affnorm_zoo.runs.model",
    DeprecationWarning,
    stacklevel=2,
)
