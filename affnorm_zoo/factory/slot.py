from collections.abc import Callable
from typing import Any

import torch
from timm.layers import LayerNorm2d, RmsNorm, RmsNorm2d, create_act_layer, norm, norm_act
from timm.models.mlp_mixer import Affine
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from affnorm_zoo.factory.families import supported
from affnorm_zoo.registry import NormalizerSpec, get_normalizer

LAYOUTS = ("NCHW", "NHWC", "NLC")

# norms of torch and timm by layout; those for images first, as some subclass the others
_IMAGE_NORMS = (
    nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d, nn.GroupNorm, norm_act.FrozenBatchNormAct2d, LayerNorm2d,
    norm.LayerNorm2dFp32,
    norm.LayerNormExp2d, norm_act.LayerNormAct2d, norm_act.LayerNormAct2dFp32, RmsNorm2d, norm.RmsNorm2dFp32,
)  # fmt: skip
# a ResMLP has an affine map per channel in the place of a norm
_TOKEN_NORMS = (nn.LayerNorm, nn.RMSNorm, RmsNorm, norm.RmsNormFp32, Affine)


class NormSlot(nn.Module):
    """Placeholder for a norm, until :func:`affnorm_zoo.bind` fuses it with the layer that it normalises.

    It has no parameters and refuses to run.

    Args:
        num_channels: of the norm.
        spec: the divergence-free normaliser.
        layout: ``"NCHW"``, ``"NHWC"`` or ``"NLC"``, where the family of the network does not say.
        act: the activation that the norm holds; an identity if it has none. None if unknown.
        drop: what the norm runs before its activation.
    """

    def __init__(
        self,
        num_channels: int,
        spec: NormalizerSpec,
        *,
        layout: str = "NCHW",
        act: nn.Module | None = None,
        drop: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.spec = spec
        self.layout = layout
        self.told_activation = act is not None
        self.drop = nn.Identity() if drop is None else drop
        self.act = nn.Identity() if act is None else act
        # timm's RegNet zeroes the weight of a block's last norm without asking whether there is one
        self.weight = torch.empty(0)

    @property
    def normalizer(self) -> str:
        """The name of the normaliser."""
        return self.spec.name

    def forward(self, x: Tensor) -> Tensor:  # noqa: ARG002
        raise RuntimeError(
            f"the slot for {self.normalizer!r} ({self.num_channels} channels) is not bound to a layer: "
            f"call affnorm_zoo.bind(model) after building the model; supported: {supported()}"
        )

    def extra_repr(self) -> str:
        return f"{self.num_channels}, normalizer={self.normalizer!r}, layout={self.layout!r}"


def norm_layer(
    name: str, *, layout: str = "NCHW", act_layer: str | type[nn.Module] | None = None
) -> Callable[..., nn.Module]:
    """Return the norm-layer factory that timm's constructors take as ``norm_layer=``.

    A separable norm is returned as it is. For a divergence-free one the factory makes slots, to be bound after the
    model is built: ``bind(timm.create_model("resnet50", norm_layer=norm_layer("patchnorm")))``.

    Args:
        name: a registered normaliser.
        layout: ``"NCHW"`` for convolutional networks, ``"NLC"`` for tokens, ``"NHWC"``. A slot needs it only where the
            family of the network does not say.
        act_layer: the activation of networks whose norms hold one, such as EfficientNet, by timm's name. timm does not
            pass it to a factory given by the user. :func:`slot_norms` does not need it.

    Raises:
        ValueError: the name or the layout is unknown, the norm does not exist for the layout, or ``act_layer`` is
            given for a separable norm.
    """
    spec = get_normalizer(name)
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(map(repr, LAYOUTS))}, got {layout!r}")
    if spec.is_bound:
        return _slot_factory(spec, layout, act_layer)
    if act_layer is not None:
        raise ValueError(f"act_layer is for divergence-free normalizers and does not apply to {name!r}")
    norm = spec.norm2d if layout == "NCHW" else spec.norm
    if norm is None:
        raise ValueError(f"normalizer {name!r} has no {layout} form: {spec.summary}")
    return norm


def _slot_factory(
    spec: NormalizerSpec, layout: str, default_act: str | type[nn.Module] | None
) -> Callable[..., nn.Module]:
    # a plain function, because timm takes no callable objects
    def slot(
        num_features: int,
        *,
        apply_act: bool | None = None,
        act_layer: str | type[nn.Module] | None = None,
        act_kwargs: dict[str, Any] | None = None,
        inplace: bool | None = None,
        drop_layer: Callable[[], nn.Module] | None = None,
        eps: float | None = None,  # noqa: ARG001 accepted for timm's contract
        device=None,  # noqa: ARG001
        dtype=None,  # noqa: ARG001
    ) -> nn.Module:
        kind = act_layer or default_act
        act: nn.Module | None = None
        if apply_act is False:
            act = nn.Identity()
        elif kind is not None:
            act = create_act_layer(kind, **{"inplace": bool(inplace), **(act_kwargs or {})}) or nn.Identity()
        elif apply_act or inplace is not None:
            raise TypeError(
                f"{spec.name!r} is to stand for a norm with an activation, but timm does not say which: build the "
                f"model with its own norms and call affnorm_zoo.slot_norms(model, {spec.name!r}), or pass "
                f"norm_layer=affnorm_zoo.norm_layer({spec.name!r}, act_layer=...)"
            )
        drop = None if drop_layer is None else drop_layer()
        return NormSlot(num_features, spec, layout=layout, act=act, drop=drop)

    return slot


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a norm of torch or timm that :func:`slot_for` knows."""
    return isinstance(module, _IMAGE_NORMS + _TOKEN_NORMS)


def slot_for(norm: nn.Module, normalizer: str) -> NormSlot:
    """Make the slot that takes the place of an existing norm: its channels, its layout, its activation and dropout.

    Args:
        norm: a norm of torch or timm over the channels, with an activation inside or without.
        normalizer: a registered divergence-free normaliser.

    Raises:
        ValueError: the module is no such norm, or the normaliser is not divergence-free.
    """
    spec = get_normalizer(normalizer)
    if not spec.is_bound:
        raise ValueError(f"a slot is for divergence-free normalizers; {normalizer!r} is a norm of its own")
    if not is_norm(norm):
        raise ValueError(f"a slot can take the place of a norm of torch or timm, got {type(norm).__name__}")
    return NormSlot(
        _num_channels(norm),
        spec,
        layout="NCHW" if isinstance(norm, _IMAGE_NORMS) else "NLC",
        act=getattr(norm, "act", nn.Identity()),
        drop=getattr(norm, "drop", None),
    ).train(norm.training)


def _num_channels(norm: nn.Module) -> int:
    if isinstance(norm, FrozenBatchNorm2d | norm_act.FrozenBatchNormAct2d):
        return norm.weight.numel()
    if isinstance(norm, Affine):
        return norm.alpha.numel()
    for name in ("num_features", "num_channels"):
        if hasattr(norm, name):
            return int(getattr(norm, name))
    shape: Any = norm.normalized_shape
    return int(shape[-1])
