"""The model of a run: built from its config, its classes in the order of the data's, described for an export."""

import timm
from torch import nn

from affnorm_zoo.config import ModelConfig
from affnorm_zoo.data import Preprocessing
from affnorm_zoo.errors import UsageError
from affnorm_zoo.evaluation import check_model_name


def build_model(config: ModelConfig, num_classes: int, in_chans: int, *, pretrained: bool = False) -> nn.Module:
    """Build the model for the data, untrained unless ``pretrained``.

    Raises:
        UsageError: timm does not know the name; or the model does not take an argument, has no pretrained weights, is
            not a classifier, or cannot checkpoint its activations.
    """
    check_model_name(config.name)
    kwargs = config.kwargs
    try:
        model = timm.create_model(
            config.name, pretrained=pretrained, num_classes=num_classes, in_chans=in_chans, **kwargs
        )
    except Exception as error:  # architectures raise errors of any type for an argument that they do not support
        message = " ".join(str(error).split())[:500]
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


def describe_preprocessing(model: nn.Module, preprocessing: Preprocessing, class_names: tuple[str, ...]) -> None:
    """Write preprocessing and class names into the model's pretrained_cfg, which an export includes."""
    model.pretrained_cfg.update(
        input_size=preprocessing.input_size,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_pct=preprocessing.crop_pct,
        interpolation=preprocessing.interpolation,
        num_classes=len(class_names),
        tag=None,
    )
    for key in ("test_input_size", "test_crop_pct", "pool_size", "label_names", "label_descriptions"):
        model.pretrained_cfg.pop(key, None)
