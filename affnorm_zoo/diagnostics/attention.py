"""The divergence of attention: how a step on the value, query and key rows moves mixed values and logits."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.func import functional_call, vjp

from affnorm_zoo.diagnostics.recording import bare, in_full_precision
from affnorm_zoo.layers import BoundLayer, MixedAttention


@dataclass(frozen=True)
class AttentionDivergence:
    """One attention's effective learning-rate factors, float64, over N images, H heads and L tokens.

    Args:
        name: name of the module.
        values: (N, H, L), of the mixed value z_t under a step on the head's value rows, with the attention weights
            fixed. For a plain layer with a bias it is ‖Σ_s a_ts x_s‖² + 1.
        logits: (N, H, L, L), of the logit of query t and key s under a step on the head's query and key rows. For a
            plain layer without norms of queries and keys it is (‖k_s‖² (‖x_t‖² + 1) + ‖q_t‖² (‖x_s‖² + 1)) / d.
    """

    name: str
    values: Tensor
    logits: Tensor


def measure_attention(model: nn.Module, images: Tensor) -> list[AttentionDivergence]:
    """Measure every attention that a model calls once, timm's or ours, for all heads, tokens and pairs of tokens.

    The layer behind ``qkv`` may be any that is linear in its weight and bias: a row of it maps x to ⟨w, φ(x)⟩ + b ψ(x).
    φ and ψ are found by running the attention with the rows of an identity matrix in place of its weight. So what a
    layer of ours divides by counts, whether before the mixing or after it. Norms of queries and keys count by their
    Jacobian. docs/derivations.md has the formulas.

    The model is measured in evaluation mode, with fused attention off; both are restored. A ``qkv`` whose weight is
    computed from others, as by pruning, is left out.

    Args:
        model: any torch model, also one wrapped by :func:`torch.compile`.
        images: (N, C, H, W), as the model takes them.

    Returns:
        One entry per attention, in the order of the modules.

    Raises:
        ValueError: the model is compiled in place.
    """
    model = bare(model)
    names = {module: name for name, module in model.named_modules() if is_measurable(module)}
    calls: dict[Any, list[tuple[tuple, dict]]] = {}

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        calls.setdefault(module, []).append((args, kwargs))

    was_training = model.training
    with torch.no_grad(), unfused(names):
        try:
            with ExitStack() as stack:
                for module in names:
                    stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
                model.eval()(images)
            with in_full_precision(images):
                return [
                    _measure(names[module], module, *calls[module][0])
                    for module in names
                    if len(calls.get(module, [])) == 1
                ]
        finally:
            model.train(was_training)


def is_measurable(module: nn.Module) -> bool:
    """Whether a module is an attention of timm's form, with one layer for queries, keys and values."""
    qkv: Any = getattr(module, "qkv", None)
    is_linear = type(qkv) is nn.Linear or isinstance(qkv, BoundLayer)
    return isinstance(module, Attention | MixedAttention) and is_linear and "weight" in qkv._parameters


@contextmanager
def unfused(modules: Any) -> Iterator[None]:
    """Turn the fused attention of these modules off until the block ends."""
    before = {module: module.fused_attn for module in modules}
    try:
        for module in modules:
            module.fused_attn = False
        yield
    finally:
        for module, was_fused in before.items():
            module.fused_attn = was_fused


def _measure(name: str, attention: Any, args: tuple, kwargs: dict) -> AttentionDivergence:
    x = args[0].to(attention.qkv.weight)
    rest = args[1:]

    def mixed(parameters: dict[str, Tensor]) -> Tensor:
        """The heads' mixed values, (N, L, H, d)."""
        with _seen(attention.norm) as seen:
            functional_call(attention, parameters, (x, *rest), kwargs)
        return seen[0].unflatten(-1, (attention.num_heads, attention.head_dim))

    def queries(parameters: dict[str, Tensor]) -> Tensor:
        """The queries before their norm, (N, L, H, d)."""
        own = {key.removeprefix("qkv."): value for key, value in parameters.items()}
        rows = functional_call(attention.qkv, own, (x,))
        return rows.unflatten(-1, (3, attention.num_heads, attention.head_dim))[:, :, 0]

    values = _square_length(attention, mixed, part=2).transpose(1, 2)
    inputs = _square_length(attention, queries, part=0)[:, :, 0]  # all heads read the same
    with _seen(attention.q_norm) as seen_q, _seen(attention.k_norm) as seen_k:
        attention(x, *rest, **kwargs)
    logits = [
        attention.scale**2
        * (
            _pulled_back(attention.q_norm, seen_q[0][i : i + 1], seen_k[1][i]) * d[:, None]
            + _pulled_back(attention.k_norm, seen_k[0][i : i + 1], seen_q[1][i]).mT * d
        )
        for i, d in enumerate(inputs)
    ]
    return AttentionDivergence(name, values.cpu(), torch.stack(logits).cpu())


def _square_length(attention: Any, run: Callable[[dict[str, Tensor]], Tensor], part: int) -> Tensor:
    """‖φ‖² + ψ², float64, (N, L, H), of the rows of queries (``part`` 0), keys (1) or values (2).

    ``run`` computes (N, L, H, d) that are linear in these rows.
    """
    qkv, size = attention.qkv, attention.head_dim
    wide = qkv.weight.shape[1]
    rows = slice(part * attention.attn_dim, (part + 1) * attention.attn_dim)
    weight = qkv.weight.detach().clone()
    parameters = {"qkv.weight": weight}
    if qkv.bias is not None:
        parameters["qkv.bias"] = qkv.bias.detach().clone()
        parameters["qkv.bias"][rows] = 0
    square: Any = 0.0
    for start in range(0, wide, size):
        some = torch.eye(size, wide - start, dtype=weight.dtype, device=weight.device)
        weight[rows] = nn.functional.pad(some, (start, 0)).repeat(attention.num_heads, 1)
        square = square + run(parameters).double().square().sum(-1)
    if qkv.bias is not None:
        weight[rows] = 0
        parameters["qkv.bias"][rows] = 1
        square = square + run(parameters)[..., 0].double().square()
    return square


def _pulled_back(norm: nn.Module, before: Tensor, others: Tensor) -> Tensor:
    """‖J_tᵀ o_s‖² for all t, s, float64, with J_t the norm's Jacobian at token t; (H, L, L).

    Args:
        norm: of queries or keys.
        before: (1, H, L, d), what it reads.
        others: (H, L, d), the keys or queries on the other side.
    """
    if isinstance(norm, nn.Identity):
        squares = others.double().square().sum(-1)
        return squares[:, None].expand(-1, before.shape[2], -1)
    after, pull = vjp(norm, before)[:2]
    units = torch.eye(after.shape[-1], dtype=after.dtype, device=after.device)
    jacobian = torch.stack([pull(unit.expand_as(after))[0][0] for unit in units], -1).double()  # Jᵀ: (H, L, d, d)
    pulled = jacobian @ others.double().mT[:, None]  # (H, L, d, L)
    return pulled.square().sum(-2)


@contextmanager
def _seen(module: nn.Module) -> Iterator[list[Tensor]]:
    """Input and output of a module's last call inside the block."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[:] = [inputs[0], output]

    handle = module.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()
