"""What a conversion refuses before it changes anything."""

from timm.layers import BatchNormAct2d, Conv2dSame, FrozenBatchNormAct2d, RmsNorm, RmsNorm2d, norm_act
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from affnorm_zoo.conversion.fit import FITS
from affnorm_zoo.errors import UsageError
from affnorm_zoo.factory.bind import UNNORMED
from affnorm_zoo.layers import check_writable
from affnorm_zoo.registry import NormalizerSpec, get_normalizer, list_normalizers

# exact types: a subclass may compute something else
BATCH_NORMS = (
    nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d,
    BatchNormAct2d, norm_act.SyncBatchNormAct, FrozenBatchNormAct2d,
)  # fmt: skip
CONVOLUTIONS = (nn.Conv2d, Conv2dSame)


def check_request(normalizer: str, fit: str | None, unnormed: str) -> NormalizerSpec:
    """Return the normaliser's spec.

    Raises:
        UsageError: the normaliser is not divergence-free, or an option is unknown.
    """
    spec = get_normalizer(normalizer)
    if not spec.is_bound:
        bound = [name for name in list_normalizers() if get_normalizer(name).is_bound]
        raise UsageError(f"normalizer must be a divergence-free one, {', '.join(bound)}, got {normalizer!r}")
    if fit is not None and fit not in FITS:
        raise UsageError(f"fit must be None, {', '.join(map(repr, FITS))}, got {fit!r}")
    if unnormed not in UNNORMED:
        raise UsageError(f"unnormed must be {' or '.join(map(repr, UNNORMED))}, got {unnormed!r}")
    if spec.conv is not None and not spec.conv.is_fixed_map:
        raise UsageError(f"{normalizer!r} changes its map while it trains, so there is no fit: use 'patchnorm'")
    if spec.options.get("weight_standardization") and fit not in (None, "lstsq"):
        raise UsageError(
            f"{normalizer!r} standardises its kernels, and scaled ones do not sum to zero: use fit='lstsq', got {fit!r}"
        )
    return spec


def batch_norms(model: nn.Module) -> list[str]:
    """Names of the batch norms to convert.

    Raises:
        UsageError: there are none, one cannot be folded, or another norm would stay.
    """
    if type(model) in BATCH_NORMS:
        raise UsageError(
            f"the model is a {type(model).__name__}, which is converted with the convolution before it: give the "
            "network that holds both"
        )
    found = []
    for name, module in model.named_modules(remove_duplicate=False):  # one norm may stand in several places
        if type(module) in BATCH_NORMS:
            if module.running_mean is None or module.running_var is None:
                raise UsageError(
                    f"{name!r} has no running statistics (track_running_stats=False), and so computes no fixed map "
                    "that could be converted: train the model with running statistics"
                )
            found.append(name)
        elif _is_norm(module):
            raise UsageError(
                f"{name!r} is a {type(module).__name__}, which cannot be folded into a layer: convert a model, or the "
                "part of one, whose norms are BatchNorm2d; for layer norms use 'normlike' or 'affinelike'"
            )
    if not found:
        raise UsageError("the model has no BatchNorm2d to convert")
    return found


def check_convolution(norm: str, name: str, layer: nn.Module) -> None:
    """Raise UsageError unless a norm can be folded into this layer."""
    if type(layer) not in CONVOLUTIONS:
        raise UsageError(
            f"{norm!r} follows {name!r}, a {type(layer).__name__}: only Conv2d itself is converted, as a subclass, "
            "such as one with standardised weights, computes something else; replace it by a Conv2d first"
        )
    check_writable(layer)


def _is_norm(module: nn.Module) -> bool:
    own = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.RMSNorm)
    return isinstance(module, (*own, RmsNorm, RmsNorm2d))
