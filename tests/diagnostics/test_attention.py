"""The measured factors of attention against real SGD steps, in float64."""

import copy

import pytest
import timm
import torch
from timm.layers import Attention
from torch import nn

from affnorm_zoo import AffineLikeLinear, L2Norm, NormLikeLinear
from affnorm_zoo.cli.divergence_table import divergence_table
from affnorm_zoo.diagnostics import DivergenceMeter, measure_attention, summed_cross_entropy
from affnorm_zoo.diagnostics.figures import plot_depth
from affnorm_zoo.functional import affine_like_linear, l2_norm

HEADS, SIZE, DIM, TOKENS = 2, 3, 7, 5


def bound(linear, **options):
    attention = Attention(DIM, HEADS, attn_head_dim=SIZE, qkv_bias=True, **options)
    attention.qkv = linear.replacing(attention.qkv, scale=(2.0, 1.5))
    return attention


CASES = {
    "plain": lambda: Attention(DIM, HEADS, attn_head_dim=SIZE, qkv_bias=True),
    "plain-no-bias": lambda: Attention(DIM, HEADS, attn_head_dim=SIZE),
    "layer-norms": lambda: Attention(DIM, HEADS, attn_head_dim=SIZE, qk_norm=True, norm_layer=nn.LayerNorm),
    "affine_like": lambda: bound(AffineLikeLinear),
    "norm_like": lambda: bound(NormLikeLinear),
    "affine_like-l2-norms": lambda: bound(AffineLikeLinear, qk_norm=True, norm_layer=L2Norm),
}


def build(name):
    torch.manual_seed(0)
    attention = CASES[name]().double().eval()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return attention, 2 * torch.randn(2, TOKENS, DIM, dtype=torch.float64)


def look(attention, x):
    """The logits and the mixed values of every head, written out, (N, H, L, L) and (N, H, L, d)."""
    q, k, v = attention.qkv(x).unflatten(-1, (3, HEADS, SIZE)).permute(2, 0, 3, 1, 4)
    logits = attention.q_norm(q) @ attention.k_norm(k).mT / SIZE**0.5
    return logits, logits.softmax(-1) @ v


def moved(attention, x, target, rows, rate=1e-5):
    """How a scalar moves under a real SGD step on some rows of qkv, over -η: the mean of a step down and one up.

    The mean has an error of order η² only.
    """
    values = []
    for maximize in (False, True):
        other = copy.deepcopy(attention)
        optimizer = torch.optim.SGD(other.qkv.parameters(), lr=rate, maximize=maximize)
        target(other).backward()
        for parameter in other.qkv.parameters():
            kept = torch.zeros_like(parameter.grad)
            kept[rows] = parameter.grad[rows]
            parameter.grad = kept
        optimizer.step()
        values.append(target(other).item())
    return (values[1] - values[0]) / (2 * rate)


@pytest.mark.parametrize("name", CASES)
def test_real_steps_move_mixed_values_and_logits_as_measured(name):
    attention, x = build(name)
    (found,) = measure_attention(attention, x)
    size = HEADS * SIZE
    generator = torch.Generator().manual_seed(1)
    for image, head, t, s in [(0, 0, 0, 0), (0, 1, 2, 4), (1, 0, 4, 1), (1, 1, 3, 3)]:
        g = torch.randn(SIZE, generator=generator, dtype=torch.float64)
        g = g / g.norm()
        values = moved(attention, x, lambda a, at=(image, head, t), g=g: look(a, x)[1][at] @ g, slice(2 * size, None))
        assert values == pytest.approx(found.values[image, head, t].item(), rel=1e-6)
        logit = moved(attention, x, lambda a, at=(image, head, t, s): look(a, x)[0][at], slice(0, 2 * size))
        assert logit == pytest.approx(found.logits[image, head, t, s].item(), rel=1e-6)


def test_a_plain_attention_has_the_closed_form():
    attention, x = build("plain")
    (found,) = measure_attention(attention, x)
    logits, _ = look(attention, x)
    mixed = logits.softmax(-1) @ x[:, None]
    torch.testing.assert_close(found.values, mixed.square().sum(-1) + 1, rtol=1e-10, atol=0)
    q, k, _ = attention.qkv(x).unflatten(-1, (3, HEADS, SIZE)).permute(2, 0, 3, 1, 4).square().sum(-1)
    d = x.square().sum(-1)[:, None] + 1
    expected = (k[..., None, :] * d[..., None] + q[..., None] * d[..., None, :]) / SIZE
    torch.testing.assert_close(found.logits, expected, rtol=1e-10, atol=0)


def test_normalised_tokens_do_not_even_out_the_mixed_factor():
    attention, x = build("affine_like")
    (found,) = measure_attention(attention, x)
    assert (found.values < 2.0**2).all()  # c² is the factor of a token that is not mixed
    assert found.values.std() > 0.05 * found.values.mean()
    # the layer's own quotient: c r [x; κ]
    features = affine_like_linear(x, torch.eye(DIM, dtype=x.dtype), scale=(2.0, 1.5))
    ones = affine_like_linear(x, x.new_zeros(1, DIM), x.new_ones(1), scale=(2.0, 1.5))
    mixed = look(attention, x)[0].softmax(-1) @ torch.cat([features, ones], -1)[:, None]
    torch.testing.assert_close(found.values, mixed.square().sum(-1), rtol=1e-10, atol=0)


def test_queries_and_keys_of_constant_length_have_the_factor_of_their_angle():
    attention, x = build("affine_like-l2-norms")
    (found,) = measure_attention(attention, x)
    q, k, _ = attention.qkv(x).unflatten(-1, (3, HEADS, SIZE)).permute(2, 0, 3, 1, 4)
    cosine = l2_norm(q) @ l2_norm(k).mT
    inverse = 1 / q.square().sum(-1)[..., None] + 1 / k.square().sum(-1)[..., None, :]
    torch.testing.assert_close(found.logits, 4.0 * (1 - cosine**2) * inverse / SIZE, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["vit_nano_patch4_32_affinelike", pytest.param("vit_nano_patch4_32_layernorm", marks=pytest.mark.slow)]
)
def test_a_model_is_measured_and_left_as_it_was(name, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, depth=2, embed_dim=24).train()
    model.blocks[1].attn.fused_attn = False
    images, labels = torch.randn(3, 3, 32, 32), torch.arange(3)
    meter = DivergenceMeter(model, summed_cross_entropy)
    for part in (slice(0, 2), slice(2, 3)):
        meter.update(images[part], labels[part])
    rows = meter.attention_summary()
    parts = ("mixed values", "logits")
    assert [(row["layer"], row["kind"]) for row in rows] == [
        (f"blocks.{i}.attn", kind) for i in (0, 1) for kind in parts
    ]
    whole = measure_attention(model, images)
    for row, expected in zip(rows, (part for found in whole for part in (found.values, found.logits)), strict=True):
        assert row["factor"]["n"] == expected.numel()
        assert row["factor"]["mean"] == pytest.approx(expected.mean().item(), rel=1e-5)
        assert row["cv"] == pytest.approx((expected.std(correction=0) / expected.mean()).item(), rel=1e-4)
    table = divergence_table(name, {"layers": meter.summary(), "attention": rows, "seconds": 0.0})
    shown = [line for line in table.splitlines() if line.startswith("blocks.1.attn ")]
    assert [line.split()[1:-3] for line in shown] == [["mixed", "values"], ["logits"]]
    figures = [tmp_path / "with.png", tmp_path / "without.png"]
    for figure, own in zip(figures, (rows, []), strict=True):
        plot_depth({name: meter.summary()}, figure, "", {name: own})
    heights = [int.from_bytes(figure.read_bytes()[20:24], "big") for figure in figures]
    assert heights[0] == 1.5 * heights[1]  # a third row of panels
    assert model.training
    assert [block.attn.fused_attn for block in model.blocks] == [True, False]
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    assert not any(getattr(module, name) for module in model.modules() for name in hooks)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_is_no_plain_attention_is_left_out():
    attention, x = build("plain")
    nn.utils.parametrizations.weight_norm(attention.qkv)
    assert measure_attention(attention, x) == []
    assert measure_attention(nn.Sequential(nn.Linear(3, 3)), torch.randn(2, 3)) == []
