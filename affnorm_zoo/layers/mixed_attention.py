from typing import TYPE_CHECKING, Any, Final

import torch.fx
from timm.layers import Attention
from timm.layers.attention import maybe_add_mask, resolve_self_attn_mask
from torch import Tensor, nn

from affnorm_zoo.functional.mixed_attention import mixed_map
from affnorm_zoo.layers._attention import take_over
from affnorm_zoo.layers._linear import NormalizedLinear
from affnorm_zoo.ops.dispatch import autocast_inputs
from affnorm_zoo.ops.mixed_attention import mixed_attention

torch.fx.wrap("mixed_attention")  # a traced graph calls the op, and so keeps its gradient
torch.fx.wrap("mixed_map")
torch.fx.wrap("autocast_inputs")
torch.fx.wrap("maybe_add_mask")
torch.fx.wrap("resolve_self_attn_mask")


class MixedAttention(nn.Module):
    """Self-attention whose values are divided after they are mixed, (N, L, C) to (N, L, dim_out).

        x̄_t = Σ_s a_ts x_s,        z_t = c (W_V x̄_t + κ b_V) / √(‖x̄_t‖² + κ²)        per head

    A step on the value rows then moves every head's z_t alike, which dividing the tokens does not give. With norm_like
    in ``qkv``: z_t = c W_V x̄_t / ‖x̄_t‖ + b_V. See :func:`affnorm_zoo.functional.affine_like_mixed`.

    It takes over the children and options of a :class:`timm.layers.Attention`, and has its attributes, arguments and
    state dict. ``qkv`` still divides its queries and keys itself. As in timm, ``fused_attn`` chooses
    between an op that saves nothing of size L² and one whose weights pass through ``attn_drop`` as a module; active
    dropout always takes the latter. It is not a subclass of timm's class: tools that look for that class would
    put plain attention in its place.

    Args:
        attention: its ``qkv`` is an :class:`affnorm_zoo.AffineLikeLinear` or :class:`affnorm_zoo.NormLikeLinear`.

    Raises:
        ValueError: ``attention`` is no timm Attention, or its ``qkv`` is another layer.
    """

    fused_attn: Final[bool]  # type: ignore[misc]  # take_over sets it
    if TYPE_CHECKING:  # TorchScript would take these for tensors
        qkv: Any
        attn_drop: Any
        gate: Any
        attn_dim: int
        head_dim: int
        num_heads: int
        scale: float

    def __init__(self, attention: Attention) -> None:
        qkv: Any = getattr(attention, "qkv", None)
        if type(attention) is not Attention or not isinstance(qkv, NormalizedLinear):
            found = f"{type(attention).__name__} with qkv={type(qkv).__name__}"
            raise ValueError(
                f"attention must be a timm Attention whose qkv is an AffineLikeLinear or NormLikeLinear, got {found}: "
                "bind a divergence-free normalizer first"
            )
        super().__init__()
        take_over(self, attention)
        self.norm_like = qkv.norm_like
        qkv.undivided = self.attn_dim

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if not torch.jit.is_scripting():
            x = autocast_inputs(x)[0]  # one copy in half precision for queries, keys, values and the divisor
        num_images, num_tokens, _ = x.shape
        gate = self.gate(x).sigmoid() if self.gate is not None else None
        qkv = self.qkv(x).reshape(num_images, num_tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        mask = resolve_self_attn_mask(num_tokens, q, attn_mask, is_causal)
        bias = None if self.qkv.bias is None else self.qkv.bias[-self.attn_dim :]
        c, kappa = self.qkv.c, 0.0 if self.norm_like else self.qkv.kappa

        if self.fused_attn and not (self.training and self.attn_drop.p > 0):
            z = mixed_attention(q, k, v, x, bias, mask, c, kappa, self.norm_like)
        else:
            attn = maybe_add_mask((q * self.scale) @ k.transpose(-2, -1), mask)
            attn = self.attn_drop(attn.softmax(dim=-1))
            z = mixed_map(attn.to(v.dtype), v, x, bias, c, kappa, self.norm_like)

        z = self.norm(z.transpose(1, 2).reshape(num_images, num_tokens, self.attn_dim))
        if gate is not None:
            z = z * gate
        return self.proj_drop(self.proj(z))
