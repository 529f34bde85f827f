from collections.abc import Callable

from torch import Tensor, nn

from affnorm_zoo.registry import NormalizerSpec, get_normalizer

SUPPORTED = "timm ResNet (BasicBlock, Bottleneck), timm VisionTransformer (Block) and torch.nn.Sequential"


class NormSlot(nn.Module):
    """Stands where a norm will be until :func:`affnorm_zoo.bind` fuses it with the layer that it normalises.

    It remembers the channel count, has no parameters, and refuses to run.
    """

    def __init__(self, num_channels: int, normalizer: str) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.normalizer = normalizer

    def forward(self, x: Tensor) -> Tensor:  # noqa: ARG002
        raise RuntimeError(
            f"the slot for {self.normalizer!r} ({self.num_channels} channels) is not bound to a layer: "
            f"call affnorm_zoo.bind(model) after building the model; supported: {SUPPORTED}"
        )

    def extra_repr(self) -> str:
        return f"{self.num_channels}, normalizer={self.normalizer!r}"


def norm_layer(name: str, *, layout: str = "NCHW") -> Callable[..., nn.Module]:
    """Return the norm-layer factory that timm's constructors take as ``norm_layer=``.

    A separable norm is given as it is. A divergence-free one is given as a slot, to be bound after the model is
    built: ``bind(timm.create_model("resnet50", norm_layer=norm_layer("patchnorm")))``.

    Args:
        name: a registered normaliser.
        layout: ``"NCHW"`` for convolutional networks, ``"NLC"`` for tokens; only separable norms tell them apart.

    Raises:
        ValueError: the name or the layout is unknown, or the norm does not exist for the layout.
    """
    spec = get_normalizer(name)
    if layout not in ("NCHW", "NLC"):
        raise ValueError(f"layout must be 'NCHW' or 'NLC', got {layout!r}")
    if spec.is_bound:
        return _slot_factory(spec)
    norm = spec.norm2d if layout == "NCHW" else spec.norm
    if norm is None:
        raise ValueError(f"normalizer {name!r} has no {layout} form: {spec.summary}")
    return norm


def _slot_factory(spec: NormalizerSpec) -> Callable[..., nn.Module]:
    # a plain function, because timm takes no callable objects
    def slot(num_channels: int, *, device=None, dtype=None, eps=None, **activation) -> nn.Module:  # noqa: ARG001
        if activation:
            raise TypeError(
                f"{spec.name!r} cannot stand for a norm with an activation inside ({', '.join(activation)}): "
                f"this architecture is not supported; supported: {SUPPORTED}"
            )
        return NormSlot(num_channels, spec.name)

    return slot
