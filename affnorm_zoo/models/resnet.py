"""ResNets with every convolutional normaliser: ``timm.create_model("resnet50_patchnorm")``."""

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import StdConv2d
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models._features import feature_take_indices
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from affnorm_zoo.factory import bind, init_bound_weights, norm_layer
from affnorm_zoo.models._described import Described
from affnorm_zoo.models._entrypoints import check_norm_scale, register_entrypoint
from affnorm_zoo.models._stem import adapt_stem, stem_scale
from affnorm_zoo.models._weights import pretrained_cfgs
from affnorm_zoo.registry import get_normalizer, list_normalizers

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


class NormalizedResNet(Described, ResNet):
    """timm's ResNet with a normaliser of this package in place of its norm.

    Args:
        block, layers, kwargs: as in :class:`timm.models.resnet.ResNet`.
        normalizer: a registered normaliser for convolutional networks.
        norm_scale: of divergence-free normalisers: ``"rms"``, which trains at depth, ``"rms4"``, the same with a κ four
            times as large where there is one, or ``"unit"``, the paper's form.
        absorb: take each ReLU behind a divergence-free convolution into it, which saves its output; False keeps it a
            module of its own, the same function.
        zero_init_last: damp the end of every residual branch at initialisation. A separable norm starts at zero there,
            a divergence-free layer at a fifth of its size.
        weight_standardization: of separable norms: standardise the kernel of every convolution before a norm, as
            timm's StdConv2d does. With ``"groupnorm"``: Qiao et al. 2019, https://arxiv.org/abs/1903.10520.

    Raises:
        ValueError: the normaliser is unknown or not made for convolutions, or an option does not apply to it.
    """

    is_built = False

    def __init__(
        self,
        block: type[nn.Module],
        layers: tuple[int, ...],
        *,
        normalizer: str,
        in_chans: int = 3,
        norm_scale: str = "rms",
        absorb: bool = True,
        zero_init_last: bool = True,
        weight_standardization: bool = False,
        **kwargs: Any,
    ) -> None:
        self.normalizer = normalizer
        spec = get_normalizer(normalizer)
        check_norm_scale(norm_scale, spec)
        if weight_standardization and spec.is_bound:
            raise ValueError(
                f"weight_standardization is for separable norms and does not apply to {normalizer!r}: use patchnorm_ws"
            )
        super().__init__(
            block, layers, in_chans=in_chans, norm_layer=norm_layer(normalizer), zero_init_last=zero_init_last, **kwargs
        )
        self._build_stem(in_chans)
        if weight_standardization:
            self._standardize_weights()
        if spec.is_bound:
            bind(self, scale=norm_scale, init=False, stem_scale=stem_scale(norm_scale, in_chans), absorb=absorb)
        self.init_weights(zero_init_last)
        self.is_built = True

    def _build_stem(self, in_chans: int) -> None:
        """Change the stem before the slots are bound; an ImageNet stem is timm's own."""

    def _standardize_weights(self) -> None:
        for name, conv in list(self.named_modules()):
            if type(conv) is nn.Conv2d and conv.bias is None:  # with a norm behind it
                sizes = {key: getattr(conv, key) for key in ("kernel_size", "stride", "padding", "dilation", "groups")}
                like = dict(device=conv.weight.device, dtype=conv.weight.dtype)
                self.set_submodule(name, StdConv2d(conv.in_channels, conv.out_channels, **sizes, **like))

    def init_weights(self, zero_init_last: bool = True) -> None:
        """Initialise all weights: timm's layers by timm's rule, the divergence-free ones by their own.

        Layers that timm has no rule for, such as the classifier, are left as they were built, and drawn by torch's rule
        when this is called again: the model may have been emptied.
        """
        if self.is_built:
            for module in self.modules():
                if isinstance(getattr(module, "reset_parameters", None), Callable):
                    module.reset_parameters()
        super().init_weights(zero_init_last)
        init_bound_weights(self, damp_branches=zero_init_last)


class NormalizedCifarResNet(NormalizedResNet):
    """ResNet for images of about 32 px: a 3×3 stem of stride 1, no pooling, three or four stages.

    ``output_stride`` counts as if the stem still had its stride of 4.

    Source:
        He et al. 2015, https://arxiv.org/abs/1512.03385, section 4.2.
    """

    def __init__(
        self, block: type[nn.Module], layers: tuple[int, ...], *, channels: tuple[int, ...], **kwargs: Any
    ) -> None:
        # timm's stem is 64 wide unless it is deep; the deep stem is replaced in _build_stem
        super().__init__(block, layers, channels=channels, stem_type="deep", stem_width=channels[0] // 2, **kwargs)

    def _build_stem(self, in_chans: int) -> None:
        stem: Any = self.get_submodule("conv1")
        info: Any = self.feature_info
        like, width = stem[0].weight, info[0]["num_chs"]
        self.conv1 = nn.Conv2d(
            in_chans, width, 3, stride=1, padding=1, bias=False, device=like.device, dtype=like.dtype
        )
        self.maxpool = nn.Identity()
        info[0]["reduction"] = 1
        for stage in info[1:]:
            stage["reduction"] //= 4
        if not hasattr(self, "layer4"):
            self.layer4 = nn.Sequential()  # timm's forward runs four stages

    def forward_intermediates(
        self, x: Tensor, indices: int | list[int] | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Return the features of the stem and of the stages that exist; see timm."""
        take, _ = feature_take_indices(len(self.feature_info), indices)
        return super().forward_intermediates(x, take, *args, **kwargs)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last of ``indices``; see timm."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        if last == len(self.feature_info) - 1:  # nothing to drop, and timm would take a third stage for a cut
            if prune_head:
                self.reset_classifier(0, "")
            return take
        return super().prune_intermediate_layers(take, prune_norm, prune_head)


# architecture -> constructor arguments, as timm has them
_IMAGENET: dict[str, dict[str, Any]] = {
    "resnet18": dict(block=BasicBlock, layers=(2, 2, 2, 2)),
    "resnet26": dict(block=Bottleneck, layers=(2, 2, 2, 2)),
    "resnet34": dict(block=BasicBlock, layers=(3, 4, 6, 3)),
    "resnet50": dict(block=Bottleneck, layers=(3, 4, 6, 3)),
    "resnet101": dict(block=Bottleneck, layers=(3, 4, 23, 3)),
    "resnet152": dict(block=Bottleneck, layers=(3, 8, 36, 3)),
    "resnet50d": dict(block=Bottleneck, layers=(3, 4, 6, 3), stem_width=32, stem_type="deep", avg_down=True),
    "wide_resnet50_2": dict(block=Bottleneck, layers=(3, 4, 6, 3), base_width=128),
    "resnext50_32x4d": dict(block=Bottleneck, layers=(3, 4, 6, 3), cardinality=32, base_width=4),
    "seresnet50": dict(block=Bottleneck, layers=(3, 4, 6, 3), block_args=dict(attn_layer="se")),
}
_CIFAR: dict[str, dict[str, Any]] = {
    "resnet20_cifar": dict(block=BasicBlock, layers=(3, 3, 3), channels=(16, 32, 64)),
    "resnet56_cifar": dict(block=BasicBlock, layers=(9, 9, 9), channels=(16, 32, 64)),
    "resnet18_cifar": dict(block=BasicBlock, layers=(2, 2, 2, 2), channels=(64, 128, 256, 512)),
}


def _cfg(architecture: str) -> dict[str, Any]:
    shared = dict(classifier="fc", license="apache-2.0", paper_ids="arXiv:2512.22247")
    if architecture in _CIFAR:
        pool = 32 // 2 ** (len(_CIFAR[architecture]["layers"]) - 1)
        return dict(
            num_classes=10, input_size=(3, 32, 32), pool_size=(pool, pool), crop_pct=1.0, interpolation="bicubic",
            mean=CIFAR10_MEAN, std=CIFAR10_STD, first_conv="conv1", **shared,
        )  # fmt: skip
    first_conv = "conv1.0" if "stem_type" in _IMAGENET[architecture] else "conv1"
    return dict(
        num_classes=1000, input_size=(3, 224, 224), pool_size=(7, 7), crop_pct=0.95, interpolation="bicubic",
        mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD, first_conv=first_conv, **shared,
    )  # fmt: skip


def _create(architecture: str, normalizer: str, name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    is_cifar = architecture in _CIFAR
    model_args = _CIFAR[architecture] if is_cifar else _IMAGENET[architecture]
    num_features = 1 + len(model_args["layers"])
    return build_model_with_cfg(
        NormalizedCifarResNet if is_cifar else NormalizedResNet,
        name,
        pretrained,
        pretrained_filter_fn=adapt_stem,
        feature_cfg=dict(out_indices=tuple(range(num_features))),
        **dict(model_args, normalizer=normalizer, **kwargs),
    )


def _names() -> dict[str, tuple[str, str]]:
    """Model name -> (architecture, normaliser): all bound normalisers, and the baselines for the small nets."""
    bound = [name for name in list_normalizers() if get_normalizer(name).conv is not None]
    baselines = [name for name in list_normalizers() if get_normalizer(name).norm2d is not None]
    return {
        f"{architecture}_{normalizer}": (architecture, normalizer)
        for architecture in (*_IMAGENET, *_CIFAR)
        for normalizer in (bound if architecture in _IMAGENET else bound + baselines)
    }


__all__ = ["NormalizedCifarResNet", "NormalizedResNet"]
default_cfgs = generate_default_cfgs(
    {key: cfg for name, (arch, _) in _names().items() for key, cfg in pretrained_cfgs(name, _cfg(arch)).items()}
)
for _name, (_architecture, _normalizer) in _names().items():
    _doc = f"{_architecture} with {_normalizer}: {get_normalizer(_normalizer).summary}."
    register_entrypoint(__name__, _name, _doc, partial(_create, _architecture, _normalizer))
