"""Layers whose numbers differ, compiled in one process, as a sweep does with one network after the other."""

import pytest
import torch
from timm.layers import Attention
from torch import nn

from affnorm_zoo.layers.affine_like import AffineLikeLinear
from affnorm_zoo.layers.l2_norm import L2Norm2d
from affnorm_zoo.layers.mixed_attention import MixedAttention
from affnorm_zoo.layers.norm_like import NormLikeLinear
from affnorm_zoo.layers.patch_norm import PatchNormConv2d


def mixed_attention(scale):
    attention = Attention(6, 2, qkv_bias=True)
    attention.qkv = AffineLikeLinear.replacing(attention.qkv, scale=scale)
    return nn.Sequential(nn.Flatten(1, 2), MixedAttention(attention))


LAYERS = {
    "patch_norm": lambda scale: PatchNormConv2d(3, 4, 3, scale=scale),
    "patch_norm_ws": lambda scale: PatchNormConv2d(3, 4, 3, scale=scale, gain=True, weight_standardization=True),
    "affine_like": lambda scale: AffineLikeLinear(6, 4, scale=scale),
    "norm_like": lambda scale: NormLikeLinear(6, 4, scale=scale),
    "mixed_attention": mixed_attention,
    "l2_norm": lambda scale: L2Norm2d(3, scale=scale),
}


QUICK = ("patch_norm_ws", "norm_like", "mixed_attention")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in LAYERS])
def test_a_scale_stays_a_constant_of_the_graph(name):
    x = torch.randn(2, 3, 5, 6)
    seen = []

    def backend(graph, inputs):
        seen.append([tuple(t.shape) for t in inputs])
        return graph

    torch._dynamo.reset()
    for scale in ("rms", "unit", (1.5, 2.5)):
        layer = LAYERS[name](scale)
        compiled = torch.compile(layer, fullgraph=True, backend=backend)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(compiled(x), layer(x))
    tensors = sorted(tuple(t.shape) for t in (x, *layer.parameters()))
    assert len(seen) == 6
    assert all(sorted(shapes) == tensors for shapes in seen), seen
