"""How networks of divergence-free layers start, beyond each layer's own rule."""

import math

import torch
from torch import nn

from affnorm_zoo.factory.families import FAMILIES, Family
from affnorm_zoo.layers import BoundLayer, check_writable

# The factor on the initial queries and keys. A divergence-free layer's outputs start with an RMS of up to 1, and
# attention over their products would start at random; this leaves the logits 1/25 of their size, so that every token
# starts by attending to all. Yang et al. 2022, https://arxiv.org/abs/2203.03466, start the queries at zero.
QUERY_KEY_START = 0.2

# The factor on timm's initial embeddings of patches and positions, which leave tokens with an RMS of about 0.3. To a
# layer norm their length is nothing; an affine_like layer normalises only what is longer than κ, an RMS of 1.
TOKEN_START = 10.0

# The factor on the initial weights of a gate. timm draws those of a gMLP with a deviation of 1e-6 and sets the bias to
# 1, so that a gate is 1 to within about 1e-5; Liu et al. 2021, https://arxiv.org/abs/2105.08050, found that critical.
GATE_START = 1e-5


@torch.no_grad()
def init_bound_weights(
    model: nn.Module, *, damp_branches: bool = True, damp_attention: bool = True, enlarge_tokens: bool = False
) -> None:
    """Initialise the divergence-free layers of ``model``, and what they read first.

    Args:
        model: a bound network.
        damp_branches: let residual branches start small, by the ``branch_ends`` of their family.
        damp_attention: let queries and keys start small, by :data:`QUERY_KEY_START`.
        enlarge_tokens: let the embeddings of patches and positions start large, by :data:`TOKEN_START`.

    Raises:
        ValueError: a parameter is computed from others, as by pruning. The model is then unchanged.
    """
    layers = bound_layers(model)
    family = family_of(model) if enlarge_tokens and layers else None
    patches, positions = (family.patches(model), family.positions(model)) if family else ([], [])
    for module in [*layers, *patches]:
        check_writable(module)
    for layer in layers:
        layer.reset_parameters()
    for module in model.modules():
        if damp_branches:
            _damp_branch(module, layers)
        if damp_attention:
            _damp_attention(module, layers)
        _open_gate(module, layers)
    for module in patches:
        module.reset_parameters()  # drawn again, not to be enlarged twice
        module.weight.mul_(TOKEN_START)
    for parameter in positions:
        nn.init.normal_(parameter, std=0.02 * TOKEN_START)


def _damp_branch(module: nn.Module, layers: list[BoundLayer]) -> None:
    for family in FAMILIES:
        names, factor = family.branch_ends.get(type(module), ((), 1.0))
        for name in names if names and family.is_residual(module) else ():
            end = module.get_submodule(name)
            if end in layers:
                end.damp(factor)


def _damp_attention(module: nn.Module, layers: list[BoundLayer]) -> None:
    for family in FAMILIES:
        pairs = family.queries_keys.get(type(module), lambda _: [])(module)
        for layer, rows in pairs:
            if layer in layers:
                layer.weight[:rows].mul_(QUERY_KEY_START)


def _open_gate(module: nn.Module, layers: list[BoundLayer]) -> None:
    for family in FAMILIES:
        gate = module.get_submodule(family.gates[type(module)]) if type(module) in family.gates else None
        if gate in layers:
            gate.damp(GATE_START)
            kappa, n = gate.inner_kappa(), gate.weight.shape[1]
            # behind the quotient a bias of 1; inside it, what gives 1 for an input of RMS 1
            nn.init.constant_(gate.bias, 1.0 if kappa is None else math.sqrt(n + kappa**2) / (gate.c * kappa))


def family_of(model: nn.Module) -> Family | None:
    """The family whose root ``model`` is, if any."""
    return next((family for family in FAMILIES if isinstance(model, family.roots)), None)


def bound_layers(model: nn.Module) -> list[BoundLayer]:
    """The divergence-free layers of ``model``, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, BoundLayer)]
