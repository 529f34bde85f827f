"""Vision transformers with every linear normaliser: ``timm.create_model("vit_small_patch16_224_affinelike")``."""

from functools import partial
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from affnorm_zoo.factory import LARGE_START, bind, init_bound_weights, mix_attention, norm_layer, recompute_attention
from affnorm_zoo.factory.attention import ATTENTIONS
from affnorm_zoo.models._entrypoints import check_norm_scale, register_entrypoint
from affnorm_zoo.models._weights import pretrained_cfgs
from affnorm_zoo.models.resnet import CIFAR10_MEAN, CIFAR10_STD
from affnorm_zoo.registry import get_normalizer, list_normalizers


class NormalizedVisionTransformer(VisionTransformer):
    """timm's VisionTransformer with a normaliser of this package in place of its norms.

    A divergence-free normaliser takes over every linear layer of the blocks; the final norm stays one, parameter-free,
    and the classifier a plain linear layer. timm's ``use_naflex`` is not supported.

    Args:
        kwargs: as in :class:`timm.models.vision_transformer.VisionTransformer`.
        normalizer: a registered normaliser for tokens.
        norm_scale: of divergence-free normalisers: ``"rms"``, which trains at depth, ``"rms4"``, the same with a κ four
            times as large where there is one, or ``"unit"``, the paper's form.
        absorb: take each GELU into the divergence-free layer behind it, which saves its output; False keeps it a
            module of its own, the same function.
        unnormed: what becomes of the linear layers that read no norm, the last ones of both branches: ``"bind"``, or
            ``"plain"``, as :func:`affnorm_zoo.convert` leaves them.
        damp_branches, damp_attention: of divergence-free normalisers: let residual branches start at a tenth of their
            size, and queries and keys at a fifth.
        attention: of divergence-free normalisers: ``"plain"``; ``"recomputed"``, the same function, whose training
            saves fewer bytes and takes longer (:class:`affnorm_zoo.layers.RecomputedAttention`); or ``"mixed"``, which
            divides the values after they are mixed and not before (:class:`affnorm_zoo.layers.MixedAttention`). Add
            timm's ``qk_norm=True`` for queries and keys of constant length.
        enlarge_tokens: of divergence-free normalisers: let the embeddings of patches and positions start at ten times
            timm's.

    Raises:
        ValueError: the normaliser is unknown or not made for tokens, or an option does not apply to it.
    """

    def __init__(
        self,
        *,
        normalizer: str,
        norm_scale: str = "rms",
        absorb: bool = True,
        unnormed: str = "bind",
        damp_branches: bool = True,
        damp_attention: bool = True,
        enlarge_tokens: bool = False,
        attention: str = "plain",
        **kwargs: Any,
    ) -> None:
        spec = get_normalizer(normalizer)
        check_norm_scale(norm_scale, spec)
        if attention not in ATTENTIONS:
            raise ValueError(f"attention must be one of {', '.join(map(repr, ATTENTIONS))}, got {attention!r}")
        if not spec.is_bound and attention != "plain":
            raise ValueError(
                f"attention={attention!r} is for divergence-free normalizers and does not apply to {spec.name!r}"
            )
        if not spec.is_bound and not (damp_branches and damp_attention and not enlarge_tokens):
            options = "damp_branches, damp_attention and enlarge_tokens"
            raise ValueError(f"{options} are for divergence-free normalizers and do not apply to {spec.name!r}")
        self.start = dict(  # for timm's init_weights
            damp_branches=damp_branches, damp_attention=damp_attention, enlarge_tokens=enlarge_tokens
        )
        super().__init__(norm_layer=norm_layer(normalizer, layout="NLC"), **kwargs)
        if spec.is_bound:
            bind(self, scale=norm_scale, init=False, absorb=absorb, unnormed=unnormed)
            if attention == "mixed":
                mix_attention(self)
            elif attention == "recomputed":
                recompute_attention(self)
            if kwargs.get("weight_init") != "skip":
                init_bound_weights(self, **self.start)

    def init_weights(self, *args: Any, **kwargs: Any) -> None:
        """Initialise all weights: timm's layers by timm's rule, the divergence-free ones by their own."""
        super().init_weights(*args, **kwargs)
        init_bound_weights(self, **self.start)


# architecture -> constructor arguments, as timm has them
_IMAGENET: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": dict(patch_size=16, embed_dim=192, depth=12, num_heads=3, **LARGE_START),
    "vit_small_patch16_224": dict(patch_size=16, embed_dim=384, depth=12, num_heads=6, **LARGE_START),
    "vit_base_patch16_224": dict(patch_size=16, embed_dim=768, depth=12, num_heads=12, **LARGE_START),
    "vit_large_patch16_224": dict(patch_size=16, embed_dim=1024, depth=24, num_heads=16, **LARGE_START),
}
_CIFAR: dict[str, dict[str, Any]] = {
    "vit_nano_patch4_32": dict(img_size=32, patch_size=4, embed_dim=96, depth=6, num_heads=3),
    "vit_tiny_patch4_32": dict(img_size=32, patch_size=4, embed_dim=192, depth=12, num_heads=3),
}


def _cfg(architecture: str) -> dict[str, Any]:
    shared = dict(
        pool_size=None, interpolation="bicubic", fixed_input_size=True, first_conv="patch_embed.proj",
        classifier="head", license="apache-2.0", paper_ids="arXiv:2512.22247",
    )  # fmt: skip
    if architecture in _CIFAR:
        return dict(num_classes=10, input_size=(3, 32, 32), crop_pct=1.0, mean=CIFAR10_MEAN, std=CIFAR10_STD, **shared)
    half = (0.5, 0.5, 0.5)
    return dict(num_classes=1000, input_size=(3, 224, 224), crop_pct=0.9, mean=half, std=half, **shared)


def _create(architecture: str, normalizer: str, name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    model_args = {**_IMAGENET, **_CIFAR}[architecture]
    out_indices = kwargs.pop("out_indices", 3)
    return build_model_with_cfg(
        NormalizedVisionTransformer,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=out_indices, feature_cls="getter"),
        **dict(model_args, normalizer=normalizer, **kwargs),
    )


def _names() -> dict[str, tuple[str, str]]:
    """Model name -> (architecture, normaliser): all bound normalisers, and the baselines for the small nets."""
    bound = [name for name in list_normalizers() if get_normalizer(name).linear is not None]
    # timm takes an identity for a norm that is left out
    baselines = [name for name in list_normalizers() if get_normalizer(name).norm not in (None, nn.Identity)]
    return {
        f"{architecture}_{normalizer}": (architecture, normalizer)
        for architecture in (*_IMAGENET, *_CIFAR)
        for normalizer in (bound if architecture in _IMAGENET else bound + baselines)
    }


__all__ = ["NormalizedVisionTransformer"]
default_cfgs = generate_default_cfgs(
    {key: cfg for name, (arch, _) in _names().items() for key, cfg in pretrained_cfgs(name, _cfg(arch)).items()}
)
for _name, (_architecture, _normalizer) in _names().items():
    _doc = f"{_architecture} with {_normalizer}: {get_normalizer(_normalizer).summary}."
    register_entrypoint(__name__, _name, _doc, partial(_create, _architecture, _normalizer))
