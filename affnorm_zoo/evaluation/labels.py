import logging
import unicodedata
from typing import Any

from torch import nn

from affnorm_zoo.data import Source
from affnorm_zoo.errors import UsageError

_logger = logging.getLogger(__name__)
_MOST_NAMES = 5  # per side, in a message


def match_labels(name: str, model: nn.Module, source: Source, by_position: bool) -> list[int] | None:
    """Match the outputs of trained weights to the data's classes by class name.

    Args:
        name: name of the weights.
        model: its ``pretrained_cfg`` has the class names, if they are known.
        source: the data; a stream has no class names.
        by_position: match by the order of the classes instead.

    Returns:
        The output of each class; None if outputs and classes have the same order, or no names are known.

    Raises:
        UsageError: the names differ.
    """
    outputs = _label_names(model)
    if by_position or outputs is None or not source.has_names or outputs == source.class_names:
        return None
    if set(outputs) != set(source.class_names) or len(set(outputs)) != len(outputs):
        raise UsageError(
            f"the classes of {name} and of the data {source.name} differ{describe_difference(model, source)}; "
            "data.labels_by_position=true matches them by position instead"
        )
    _logger.warning("the classes of %s are in another order than those of %s: matched by name", name, source.name)
    return [outputs.index(label) for label in source.class_names]


def describe_difference(model: nn.Module, source: Source) -> str:
    """Class names that only the weights or only the data have, after a colon; empty unless both name their classes."""
    outputs = _label_names(model)
    if outputs is None or not source.has_names:
        return ""
    shown = _shown(outputs, source.class_names), _shown(source.class_names, outputs)
    return f": the weights know {shown[0]}, the data have {shown[1]}"


def _label_names(model: nn.Module) -> tuple[str, ...] | None:
    """The class names of the outputs, if known.

    Raises:
        UsageError: they are stated in a form that is not timm's.
    """
    cfg: Any = model.pretrained_cfg
    names = cfg.get("label_names")
    if isinstance(names, dict):  # keyed by number, for configs with gaps
        try:
            names = [names[key] for key in sorted(names, key=int)]
        except ValueError as error:
            raise UsageError(f"label_names of the weights must be a list, or keyed by number: {error}") from error
    if not names:
        return None
    if not isinstance(names, list | tuple):
        raise UsageError(f"label_names of the weights must be a list, or keyed by number, got {names!r:.80}")
    if len(names) != model.num_classes:
        _logger.warning("label_names of the weights are not compared: %d for %d classes", len(names), model.num_classes)
        return None
    return tuple(unicodedata.normalize("NFC", str(name)) for name in names)


def _shown(names: tuple[str, ...], others: tuple[str, ...]) -> str:
    """Some of the names that ``others`` lacks."""
    odd = [name for name in names if name not in set(others)] or list(names)
    return ", ".join(map(repr, odd[:_MOST_NAMES])) + (f" and {len(odd) - _MOST_NAMES} more" * (len(odd) > _MOST_NAMES))
