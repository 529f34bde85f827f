import inspect
from functools import partial
from typing import Any

import torch
from timm.layers import Attention
from timm.layers.attention import maybe_add_mask, resolve_self_attn_mask
from timm.models import register_notrace_module
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from affnorm_zoo.layers._attention import take_over
from affnorm_zoo.ops.dispatch import use_plain_path

aten = torch.ops.aten
# what scaled_dot_product_attention becomes, device by device: its output is kept, so it runs once
_FUSED = [
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
]
# let saved_tensors_hooks see what is kept, as they see every other saved tensor; torch asks for it since 2.14
_VISIBLE = {"respect_saved_tensors_hooks": True}
_OPTIONS: Any = _VISIBLE if _VISIBLE.keys() <= inspect.signature(checkpoint).parameters.keys() else {}


@register_notrace_module
class RecomputedAttention(Attention):
    """timm's self-attention, whose backward computes queries, keys and values again, (N, L, C) to (N, L, dim_out).

    It keeps the tokens and the mixed values; queries, keys and values, three times as large, take one more product with
    the weight of ``qkv``. Values and gradients are those of timm's class. The fused attention itself runs once; with
    ``fused_attn`` False its weights are computed again too. Compiled by torch before 2.11, it saves what timm's class
    does.

    It takes over the children and options of ``attention``, and has its attributes, arguments and state dict.

    Args:
        attention: whose ``qkv`` is any linear layer.

    Raises:
        ValueError: ``attention`` is no timm Attention.
    """

    def __init__(self, attention: Attention) -> None:
        if type(attention) is not Attention:
            raise ValueError(f"attention must be a timm Attention, got {type(attention).__name__}")
        nn.Module.__init__(self)
        take_over(self, attention)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        gate = self.gate(x).sigmoid() if self.gate is not None else None
        if torch.jit.is_scripting():
            z = self.attend(x, attn_mask, is_causal)
        else:
            z = _recomputed(self.attend, x, attn_mask, is_causal)
        z = self.norm(z)
        if gate is not None:
            z = z * gate
        return self.proj_drop(self.proj(z))

    def attend(self, x: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
        """The mixed values, (N, L, attn_dim)."""
        num_images, num_tokens, _ = x.shape
        qkv = self.qkv(x).reshape(num_images, num_tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused_attn:
            drop = self.attn_drop.p if self.training else 0.0
            z = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=drop, is_causal=is_causal)
        else:
            attn = (q * self.scale) @ k.transpose(-2, -1)
            attn = maybe_add_mask(attn, resolve_self_attn_mask(num_tokens, attn, attn_mask, is_causal))
            z = self.attn_drop(attn.softmax(dim=-1)) @ v
        return z.transpose(1, 2).reshape(num_images, num_tokens, self.attn_dim)


def _recomputed(attend: Any, *args: Any) -> Tensor:
    if use_plain_path() or not torch.is_grad_enabled():
        return attend(*args)
    contexts = partial(create_selective_checkpoint_contexts, _FUSED)
    return checkpoint(attend, *args, use_reentrant=False, context_fn=contexts, **_OPTIONS)
