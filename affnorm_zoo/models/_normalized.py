"""Networks that timm builds in full, with norms of its own, and whose norms then give way."""

from functools import partial
from typing import Any, TypeVar

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, get_pretrained_cfg
from torch import nn

from affnorm_zoo.factory import bind, init_bound_weights, plan_bindings, slot_norms
from affnorm_zoo.models._described import Described
from affnorm_zoo.models._entrypoints import check_norm_scale, register_entrypoint
from affnorm_zoo.models._stem import adapt_stem, stem_scale
from affnorm_zoo.models._weights import pretrained_cfgs
from affnorm_zoo.registry import get_normalizer, list_normalizers

Model = TypeVar("Model", bound="Normalized")

_CFG_KEYS = (
    "num_classes", "input_size", "pool_size", "crop_pct", "interpolation", "mean", "std", "first_conv", "classifier",
)  # fmt: skip


class Normalized(Described):
    """What the classes of such networks share. Each derives from this one and from timm's class.

    timm's own functions build the network, as only they know its sizes, and they fix its class. It becomes one of ours
    once its norms are replaced, which adds nothing but behaviour.
    """

    damp_branches: bool

    @classmethod
    def build(
        cls: type[Model],
        architecture: str,
        *,
        normalizer: str,
        norm_scale: str = "rms",
        absorb: bool = True,
        damp_branches: bool = True,
        **kwargs: Any,
    ) -> Model:
        """Build timm's ``architecture`` with a divergence-free normaliser in place of its norms.

        Args:
            architecture: a name of timm's.
            normalizer: a registered divergence-free normaliser.
            norm_scale: ``"rms"``, which trains at depth, ``"rms4"``, the same with a κ four times as large where there
                is one, or ``"unit"``, the paper's form.
            absorb: take activations into the layers beside them; False keeps them modules, the same function.
            damp_branches: let residual branches start small.
            kwargs: timm's options of the architecture.

        Raises:
            ValueError: the normaliser is unknown or not made for such layers, or ``norm_scale`` is unknown.
        """
        check_norm_scale(norm_scale, get_normalizer(normalizer))
        model = timm.create_model(architecture, **kwargs)
        slot_norms(model, normalizer)
        first_conv = get_pretrained_cfg(architecture).first_conv
        has_stem = plan_bindings(model)[0].layers == (first_conv,)
        own_scale = stem_scale(norm_scale, kwargs.get("in_chans", 3)) if has_stem else None
        bind(model, scale=norm_scale, stem_scale=own_scale, absorb=absorb, init=False)
        model.__dict__.pop("pretrained_cfg")  # timm's; ours comes once timm's builder has the model
        model.__class__ = cls
        model.normalizer, model.damp_branches = normalizer, damp_branches
        init_bound_weights(model, damp_branches=damp_branches)
        return model

    def init_plain_weights(self) -> None:
        """Initialise timm's layers by timm's rule."""
        raise NotImplementedError

    def init_weights(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002 timm's signatures differ
        """Initialise all weights: timm's layers by timm's rule, the divergence-free ones by their own.

        Layers that timm has no rule for are drawn by torch's.
        """
        for module in self.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        self.init_plain_weights()
        init_bound_weights(self, damp_branches=self.damp_branches)


def model_cfgs(architectures: tuple[str, ...]) -> Any:
    """The pretrained configs of all normalisers' models of a module, from those of timm's architectures."""
    configs = {}
    for name, (architecture, _) in _names(architectures).items():
        given = get_pretrained_cfg(architecture).to_dict()
        cfg = {key: given[key] for key in _CFG_KEYS if given.get(key) is not None}
        configs.update(pretrained_cfgs(name, dict(cfg, license="apache-2.0", paper_ids="arXiv:2512.22247")))
    return generate_default_cfgs(configs)


def register_models(module_name: str, model_class: type[Normalized], architectures: tuple[str, ...]) -> None:
    """Make one entry point per architecture and convolutional normaliser in a module that has its ``default_cfgs``."""
    for name, (architecture, normalizer) in _names(architectures).items():
        doc = f"{architecture} with {normalizer}: {get_normalizer(normalizer).summary}."
        build = partial(_create, partial(model_class.build, architecture, normalizer=normalizer))
        register_entrypoint(module_name, name, doc, build)


def _names(architectures: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    bound = [name for name in list_normalizers() if get_normalizer(name).conv is not None]
    return {f"{arch}_{normalizer}": (arch, normalizer) for arch in architectures for normalizer in bound}


def _create(build: Any, name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_model_with_cfg(
        build, name, pretrained, pretrained_filter_fn=adapt_stem, feature_cfg=dict(feature_cls="getter"), **kwargs
    )
