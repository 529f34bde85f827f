"""The model of a run: built from its config, its classes in the order of the data's, described for an export."""

import re
from pathlib import Path
from typing import Any

import timm
from torch import nn

from affnorm_zoo.config import ModelConfig, expand_home
from affnorm_zoo.data import Preprocessing
from affnorm_zoo.errors import UsageError
from affnorm_zoo.evaluation import check_model_name, read_export

_RATE = re.compile(r"(.*_)?drop(_\w+)?_rate")  # timm's names of probabilities
_OF_THE_DATA = ("num_classes", "in_chans", "img_size", "global_pool")  # set by the data, or no choice of a function


def build_model(config: ModelConfig, num_classes: int, in_chans: int, *, pretrained: bool = False) -> nn.Module:
    """Build the model for the data, untrained unless ``pretrained``.

    Pretrained weights are those of ``config.weights``, if given, or those that timm has for the name.

    Raises:
        UsageError: timm does not know the name; or the model does not take an argument, has no pretrained weights, is
            not a classifier, or cannot checkpoint its activations; or ``config.weights`` are those of another model.
    """
    check_model_name(config.name)
    kwargs, name = config.kwargs, config.name
    _check_kwargs(kwargs)
    if pretrained and config.weights is not None:
        name = f"local-dir:{_check_weights(config)}"
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_chans, **kwargs)
    except Exception as error:  # architectures raise errors of any type for an argument that they do not support
        message = " ".join(str(error).split())[:500] or type(error).__name__
        if pretrained and isinstance(error, RuntimeError | OSError):
            raise UsageError(f"the weights of {config.name} could not be loaded: {message}") from error
        raise UsageError(f"model {config.name} cannot be built with model.kwargs={kwargs}: {message}") from error
    if getattr(model, "num_classes", None) != num_classes or not isinstance(model.pretrained_cfg, dict):
        raise UsageError(f"model {config.name} with model.kwargs={kwargs} is not a classifier of {num_classes} classes")
    if config.grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except Exception as error:
            raise UsageError(f"model.grad_checkpointing: {config.name} does not support it: {error}") from error
    return model


def _check_kwargs(kwargs: dict[str, Any]) -> None:
    """Raise UsageError for an argument that timm takes and that would do something other than it says."""
    if "checkpoint_path" in kwargs:
        raise UsageError("model.kwargs.checkpoint_path is not compared with the data: start from model.weights=FOLDER")
    for key, value in kwargs.items():
        if _RATE.fullmatch(key) and isinstance(value, int | float) and not 0 <= value <= 1:
            raise UsageError(f"model.kwargs.{key} must lie in [0, 1], got {value}")


def _check_weights(config: ModelConfig) -> Path:
    """The export folder of ``config.weights``; raises UsageError unless it is one of the config's model."""
    folder = Path(expand_home(str(config.weights)))
    described = read_export(folder)
    wanted = {key: value for key, value in described["model_args"].items() if key not in _OF_THE_DATA}
    options = [f"model.kwargs.{key}={value}" for key, value in wanted.items() if config.kwargs.get(key) != value]
    if described["architecture"] != config.name:
        options.insert(0, f"model.name={described['architecture']}")
    if options:
        raise UsageError(f"model.weights={config.weights} are those of another model: set {' '.join(options)}")
    return folder


def reorder_classifier(model: nn.Module, outputs: list[int]) -> None:
    """Reorder a trained classifier so that its output ``outputs[k]`` becomes the k-th.

    Raises:
        UsageError: the classifier is not made of layers with one row per class.
    """
    heads = model.get_classifier()
    for head in heads if isinstance(heads, tuple | list) else (heads,):
        for parameter in head.parameters():
            if len(parameter) != len(outputs):
                raise UsageError("the classifier of these weights cannot be reordered to match the data's classes")
            parameter.data = parameter.data[outputs].clone()


def describe_preprocessing(
    model: nn.Module, preprocessing: Preprocessing, class_names: tuple[str, ...], problem_type: str | None = None
) -> None:
    """Write preprocessing and classes into the model's pretrained_cfg, which an export includes.

    The type of problem is a note there: timm has no field for it.
    """
    cfg: Any = model.pretrained_cfg
    cfg.update(
        input_size=preprocessing.input_size,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_pct=preprocessing.crop_pct,
        interpolation=preprocessing.interpolation,
        num_classes=len(class_names),
        tag=None,
    )
    for key in ("test_input_size", "test_crop_pct", "pool_size", "label_names", "label_descriptions", "notes"):
        cfg.pop(key, None)
    if problem_type is not None:
        cfg["notes"] = [problem_type]
