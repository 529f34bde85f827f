"""The registry of normalisers: name -> NormalizerSpec."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import nn

PAPER = "2512.22247"


@dataclass(frozen=True, kw_only=True)
class NormalizerSpec:
    """One normaliser, divergence-free or baseline.

    A normaliser is either *separable* or *bound*. A separable one is a module of its own, given by ``norm`` and
    ``norm2d``. A bound one is fused with the layer that it normalises, given by ``conv``, ``linear`` or both.

    Args:
        name: the word used in configs and model names.
        summary: one line.
        formula: the map, in the notation of the documentation.
        paper: arXiv id, or empty.
        norm: called with the channel count, normalises (..., C).
        norm2d: called with the channel count, normalises (N, C, H, W).
        conv: :class:`affnorm_zoo.layers.BoundLayer` that replaces a convolution and its norm, with the arguments of
            :class:`torch.nn.Conv2d`.
        conv_same: the same for timm's ``Conv2dSame``.
        linear: the same for a linear layer after a norm, with the arguments of :class:`torch.nn.Linear`.
        options: constructor arguments of ``conv`` and ``linear``.
        order: place in lists, lowest first, then in the order of registration. The package's own bound normalisers
            have 0, its baselines 100.
        partner: the normaliser that is the same map in layers of the other kind, or empty. Where a network mixes
            convolutions and linear layers, it serves those that this one is not made for.
        reparameterized: the normaliser of a model after :func:`timm.utils.reparameterize_model`, if it differs.
    """

    name: str
    summary: str
    formula: str
    paper: str = ""
    norm: Callable[..., nn.Module] | None = None
    norm2d: Callable[..., nn.Module] | None = None
    conv: type[Any] | None = None
    conv_same: type[Any] | None = None
    linear: type[Any] | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    order: int = 0
    partner: str = ""
    reparameterized: str = ""

    def __post_init__(self) -> None:
        separable = self.norm is not None or self.norm2d is not None
        if separable == self.is_bound:
            raise ValueError(f"normalizer {self.name!r} must have either norm or norm2d, or conv or linear")
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    def __reduce__(self) -> tuple[Callable[[str], "NormalizerSpec"], tuple[str]]:
        """Copied and pickled by name, as parts of a model are."""
        return get_normalizer, (self.name,)

    @property
    def is_bound(self) -> bool:
        """Whether the normaliser is fused with a layer; it then reaches a model through slots."""
        return self.conv is not None or self.linear is not None


_REGISTRY: dict[str, NormalizerSpec] = {}


def register_normalizer(spec: NormalizerSpec) -> NormalizerSpec:
    """Add ``spec`` under its name and return it.

    Raises:
        ValueError: the name is taken or is not a lower-case identifier.
    """
    if not (spec.name.isidentifier() and spec.name == spec.name.lower()):
        raise ValueError(f"a normalizer's name must be a lower-case identifier, got {spec.name!r}")
    if spec.name in _REGISTRY:
        raise ValueError(f"normalizer {spec.name!r} is already registered: {_REGISTRY[spec.name].summary}")
    _REGISTRY[spec.name] = spec
    return spec


def get_normalizer(name: str) -> NormalizerSpec:
    """Return the spec registered under ``name``.

    Raises:
        ValueError: the name is unknown; the message names the nearest known one.
    """
    if not isinstance(name, str):
        raise ValueError(f"a normalizer is given by its name, such as 'patchnorm', got {type(name).__name__}")
    if name not in _REGISTRY:
        near = difflib.get_close_matches(name, _REGISTRY, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(list_normalizers())}"
        raise ValueError(f"unknown normalizer {name!r}; {hint}")
    return _REGISTRY[name]


def list_normalizers() -> list[str]:
    """The names of all registered normalisers, sorted by their ``order``, then as registered."""
    return sorted(_REGISTRY, key=lambda name: _REGISTRY[name].order)
