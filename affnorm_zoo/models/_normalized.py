"""Networks that timm builds in full, with norms of its own, and whose norms then give way."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, get_pretrained_cfg
from torch import Tensor, nn

from affnorm_zoo.factory import bind, init_bound_weights, plan_bindings, slot_norms
from affnorm_zoo.factory.init import family_of
from affnorm_zoo.models._described import Described
from affnorm_zoo.models._entrypoints import check_norm_scale, register_entrypoint
from affnorm_zoo.models._stem import adapt_stem, stem_scale
from affnorm_zoo.models._weights import pretrained_cfgs
from affnorm_zoo.registry import get_normalizer, list_normalizers

Model = TypeVar("Model", bound="Normalized")

_CFG_KEYS = (
    "num_classes", "input_size", "fixed_input_size", "pool_size", "crop_pct", "interpolation", "mean", "std",
    "first_conv", "classifier",
)  # fmt: skip


class Normalized(Described):
    """What the classes of such networks share. Each derives from this one and from timm's class.

    timm's own functions build the network, as only they know its sizes, and they fix its class. It becomes one of ours
    once its norms are replaced, which adds nothing but behaviour.
    """

    start: dict[str, bool]  # arguments of init_bound_weights

    @classmethod
    def build(
        cls: type[Model],
        architecture: str,
        *,
        normalizer: str,
        norm_scale: str = "rms",
        absorb: bool = True,
        unnormed: str = "bind",
        damp_branches: bool | None = None,
        damp_attention: bool | None = None,
        enlarge_tokens: bool | None = None,
        **kwargs: Any,
    ) -> Model:
        """Build timm's ``architecture`` with a divergence-free normaliser in place of its norms.

        Args:
            architecture: a name of timm's.
            normalizer: a registered divergence-free normaliser.
            norm_scale: ``"rms"``, which trains at depth, ``"rms4"``, the same with a κ four times as large where there
                is one, or ``"unit"``, the paper's form.
            absorb: take activations into the layers beside them; False keeps them modules, the same function.
            unnormed: ``"bind"`` replaces the linear layers that have no norm before them too; ``"plain"`` keeps them.
            damp_branches, damp_attention, enlarge_tokens: let residual branches, queries and keys start small, and
                embeddings of patches and positions large; None for what suits the family.
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
        bind(model, scale=norm_scale, stem_scale=own_scale, absorb=absorb, unnormed=unnormed, init=False)
        model.__dict__.pop("pretrained_cfg")  # timm's; ours comes once timm's builder has the model
        model.__class__ = cls
        model.normalizer = normalizer
        own = dict(damp_branches=damp_branches, damp_attention=damp_attention, enlarge_tokens=enlarge_tokens)
        family: Any = family_of(model)
        model.start = {**family.start, **{key: value for key, value in own.items() if value is not None}}
        init_bound_weights(model, **model.start)
        return model

    def init_plain_weights(self) -> None:
        """Initialise timm's layers by timm's rule: ``init_weights`` of timm's class, unless a subclass has another."""
        super().init_weights()  # type: ignore[misc]

    def init_weights(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002 timm's signatures differ
        """Initialise all weights: timm's layers by timm's rule, the divergence-free ones by their own.

        Layers that timm has no rule for are drawn by torch's.
        """
        for module in self.modules():
            for name in ("reset_parameters", "init_non_persistent_buffers"):
                if hasattr(module, name):
                    getattr(module, name)()
        self.init_plain_weights()
        init_bound_weights(self, **self.start)


def model_cfgs(architectures: tuple[str, ...], kind: str = "conv") -> Any:
    """The pretrained configs of all normalisers' models of a module, from those of timm's architectures."""
    configs = {}
    for name, (architecture, _) in _names(architectures, kind).items():
        given = get_pretrained_cfg(architecture).to_dict()
        cfg = {key: given[key] for key in _CFG_KEYS if given.get(key)}  # timm has weights without a classifier
        cfg.setdefault("num_classes", 1000)
        configs.update(pretrained_cfgs(name, dict(cfg, license="apache-2.0", paper_ids="arXiv:2512.22247")))
    return generate_default_cfgs(configs)


def register_models(
    module_name: str,
    model_class: type[Normalized],
    architectures: tuple[str, ...],
    kind: str = "conv",
    *,
    filter_fn: Callable[..., dict[str, Tensor]] = adapt_stem,
    **feature_cfg: Any,
) -> None:
    """Make one entry point per architecture and normaliser in a module that has its ``default_cfgs``.

    Args:
        module_name: of the module.
        model_class: of the models.
        architectures: names of timm's.
        kind: ``"conv"`` or ``"linear"``, the layers that the normalisers must be made for.
        filter_fn: prepares a checkpoint for a model of another size.
        feature_cfg: timm's options of ``features_only``, beyond the class.
    """
    for name, (architecture, normalizer) in _names(architectures, kind).items():
        doc = f"{architecture} with {normalizer}: {get_normalizer(normalizer).summary}."
        build = partial(model_class.build, architecture, normalizer=normalizer)
        features = dict(feature_cls="getter", **feature_cfg)
        register_entrypoint(module_name, name, doc, partial(_create, build, filter_fn, features))


def _names(architectures: tuple[str, ...], kind: str) -> dict[str, tuple[str, str]]:
    bound = [name for name in list_normalizers() if getattr(get_normalizer(name), kind) is not None]
    return {f"{arch}_{normalizer}": (arch, normalizer) for arch in architectures for normalizer in bound}


def _create(
    build: Any, filter_fn: Any, features: dict[str, Any], name: str, pretrained: bool, **kwargs: Any
) -> nn.Module:
    own = dict(features)  # timm takes entries out and puts the caller's out_indices in
    return build_model_with_cfg(build, name, pretrained, pretrained_filter_fn=filter_fn, feature_cfg=own, **kwargs)
