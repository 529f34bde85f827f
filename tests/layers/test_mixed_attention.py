"""The layer and the models' option: timm's arguments, both paths, other runtimes, what is saved and what is refused."""

import copy
import pickle

import pytest
import timm
import torch
from timm.layers import Attention
from timm.models import save_for_hf
from timm.models._features_fx import create_feature_extractor

from affnorm_zoo import AffineLikeLinear, L2Norm, NormLikeLinear
from affnorm_zoo.diagnostics import measure_attention
from affnorm_zoo.evaluation.memory import saved_bytes
from affnorm_zoo.factory import mix_attention
from affnorm_zoo.functional import affine_like_mixed, norm_like_mixed
from affnorm_zoo.layers import MixedAttention

HEADS, SIZE, DIM, TOKENS = 2, 3, 7, 5
NAME = "vit_nano_patch4_32_affinelike"
SMALL = dict(depth=2, embed_dim=24, num_classes=3)


def build(linear=AffineLikeLinear, scale=(2.0, 1.5), dtype=torch.float64, **options):
    torch.manual_seed(0)
    norm_layer = options.pop("norm_layer", L2Norm)
    plain = Attention(DIM, HEADS, attn_head_dim=SIZE, qkv_bias=True, norm_layer=norm_layer, **options).to(dtype)
    plain.qkv = linear.replacing(plain.qkv, scale=scale)
    with torch.no_grad():
        plain.qkv.bias.normal_()
    return MixedAttention(plain), (2 * torch.randn(2, TOKENS, DIM, dtype=dtype)).requires_grad_()


def both_paths(layer, run):
    found = []
    for layer.fused_attn in (True, False):
        found.append(run())
    return found


MASKS = {
    "none": {},
    "causal": dict(is_causal=True),
    "bool": dict(attn_mask=torch.eye(TOKENS, dtype=torch.bool) | (torch.arange(TOKENS) < 3)),
    "bias": dict(attn_mask=torch.linspace(-2, 2, TOKENS**2, dtype=torch.float64).view(TOKENS, TOKENS)),
}
OPTIONS = {"plain": {}, "qk_norm": dict(qk_norm=True), "gated": dict(gated=True), "scale_norm": dict(scale_norm=True)}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("linear", [AffineLikeLinear, NormLikeLinear])
def test_it_is_timms_attention_with_the_reference_in_its_middle(mask, linear):
    layer, x = build(linear)
    seen = []
    layer.norm.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))

    def middle():
        layer(x, **mask)
        return seen.pop().unflatten(-1, (HEADS, SIZE)).transpose(1, 2)

    fused, unfused = both_paths(layer, middle)
    q, k, _ = layer.qkv(x).unflatten(-1, (3, HEADS, SIZE)).permute(2, 0, 3, 1, 4)
    logits = q @ k.mT / SIZE**0.5
    if "is_causal" in mask:
        logits = logits.masked_fill(torch.ones(TOKENS, TOKENS).triu(1).bool(), -torch.inf)
    elif "attn_mask" in mask:
        given = mask["attn_mask"]
        logits = logits.masked_fill(~given, -torch.inf) if given.dtype == torch.bool else logits + given
    reference = norm_like_mixed if linear is NormLikeLinear else affine_like_mixed
    rows = slice(2 * HEADS * SIZE, None)
    expected = reference(x, logits.softmax(-1), layer.qkv.weight[rows], layer.qkv.bias[rows], scale=(2.0, 1.5))
    torch.testing.assert_close(fused, expected)
    torch.testing.assert_close(unfused, expected)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("linear", [AffineLikeLinear, NormLikeLinear])
def test_both_paths_have_the_same_gradients(options, linear):
    layer, x = build(linear, **options)
    dz = torch.randn(2, TOKENS, DIM, dtype=torch.float64)
    inputs = [x, *layer.parameters()]
    fused, unfused = both_paths(layer, lambda: torch.autograd.grad(layer(x, is_causal=True), inputs, dz))
    for actual, expected in zip(fused, unfused, strict=True):
        torch.testing.assert_close(actual, expected)


def test_far_from_kappa_it_is_timms_own():
    torch.manual_seed(0)
    plain = Attention(DIM, HEADS, attn_head_dim=SIZE, qkv_bias=True).double()
    x = torch.randn(2, TOKENS, DIM, dtype=torch.float64)
    expected = plain(x)
    plain.qkv = AffineLikeLinear.replacing(plain.qkv, scale=(1e6, 1e6))
    with torch.no_grad():
        plain.qkv.bias.div_(1e6)
    torch.testing.assert_close(MixedAttention(plain)(x), expected, rtol=1e-8, atol=1e-9)


def test_dropout_takes_the_path_on_which_the_weights_are_seen():
    layer, x = build(attn_drop=0.5)
    seen = []
    layer.attn_drop.register_forward_hook(lambda *call: seen.append(call[2]))
    layer.train()(x)
    assert len(seen) == 1
    assert 0 < (seen[0] == 0).double().mean() < 1
    layer.eval()(x)
    assert len(seen) == 1
    layer.fused_attn = False
    layer(x)
    torch.testing.assert_close(seen[1].sum(-1), torch.ones(2, HEADS, TOKENS, dtype=torch.float64))


def test_nothing_of_the_size_of_the_attention_is_saved():
    tokens, width = 40, 24
    plain = Attention(width, 3, qkv_bias=True)
    plain.qkv = AffineLikeLinear.replacing(plain.qkv)
    layer, x = MixedAttention(plain), torch.randn(2, tokens, width, requires_grad=True)
    layer.fused_attn = True
    # x; queries, keys and values; the divisors of tokens and of mixed tokens; what proj reads
    assert saved_bytes(layer, x) == 4 * 2 * tokens * (width + 3 * width + 1 + 3 + width)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager_decomp_partition")
    assert saved_bytes(compiled, x) <= saved_bytes(layer, x) + 4 * 2 * tokens**2  # and G, but no head's weights


def test_under_autocast_there_is_one_copy_of_the_input():
    layer, x = build(dtype=torch.float32)
    layer.fused_attn = True
    truth = copy.deepcopy(layer).double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        z = layer(x)
        half = 2 * 2 * TOKENS * (DIM + 4 * HEADS * SIZE)  # as above, in half precision
        weights = 2 * sum(p.numel() for p in layer.parameters())
        assert saved_bytes(layer, x) <= half + 4 * 2 * TOKENS * (1 + HEADS) + weights
    assert z.dtype == torch.bfloat16
    # x, W, q and k, the weights, z and proj are each rounded by half an eps, and the logits are up to 4
    assert (z.double() - truth).abs().max() <= 16 * torch.finfo(torch.bfloat16).eps * truth.abs().max()
    z.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in (x, *layer.parameters()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_other_runtimes_compute_the_same():
    torch.manual_seed(0)
    model = timm.create_model(NAME, attention="mixed", qk_norm=True, **SMALL).eval()
    x = torch.randn(2, 3, 32, 32)
    y = model(x)
    twins = {
        "fx": lambda: create_feature_extractor(model, ["head"])(x)["head"],
        "export": lambda: torch.export.export(model, (x,)).module()(x),
        "script": lambda: torch.jit.script(model)(x),
        "copy": lambda: pickle.loads(pickle.dumps(copy.deepcopy(model)))(x),
    }
    for name, twin in twins.items():
        torch.testing.assert_close(twin(), y, msg=lambda m, name=name: f"{name}: {m}")
    mapped = torch.vmap(lambda image: torch.func.functional_call(model, {}, (image[None],))[0])(x)
    torch.testing.assert_close(mapped, y)


@pytest.mark.parametrize("name", [NAME, NAME.replace("affinelike", "normlike")])
def test_the_option_keeps_the_state_dict_and_evens_out_the_factor(name, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name, attention="mixed", **SMALL)
    plain = timm.create_model(name, **SMALL)
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    for ours, theirs in zip(measure_attention(model, x), measure_attention(plain, x), strict=True):
        expected = 24.0 + name.endswith("normlike")
        torch.testing.assert_close(ours.values, torch.full_like(ours.values, expected), rtol=1e-5, atol=0)  # float32
        assert theirs.values.std() > 1e-3 * theirs.values.mean()
    assert not torch.equal(model(x), plain(x))
    first = model.blocks[0].attn.qkv
    assert first.weight[:48].std() < 0.5 * first.weight[48:].std()  # queries and keys start small
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert isinstance(loaded.blocks[0].attn, MixedAttention)
    assert torch.equal(loaded.eval()(x), model.eval()(x))


def test_checkpointing_changes_no_gradient():
    model = timm.create_model(NAME, attention="mixed", **SMALL).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    g = torch.randn(2, 3, dtype=torch.float64)

    def gradients(enable):
        model.set_grad_checkpointing(enable)
        return torch.autograd.grad(model(x), [*model.parameters()], g)

    for actual, expected in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(actual, expected)


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(ValueError, match="attention must be one of 'plain', 'mixed', 'recomputed', got 'none'"):
        timm.create_model(NAME, attention="none")
    with pytest.raises(ValueError, match="does not apply to 'layernorm'"):
        timm.create_model("vit_nano_patch4_32_layernorm", attention="mixed")
    with pytest.raises(ValueError, match=r"got Attention with qkv=Linear: bind a divergence-free normalizer first"):
        MixedAttention(Attention(DIM, 1))
    with pytest.raises(ValueError, match="needs timm's Attention, and the model has none"):
        mix_attention(timm.create_model("resnet18_patchnorm", num_classes=1))
    model = timm.create_model(NAME, **SMALL)
    model.blocks[1].attn.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"'blocks.1.attn' has hooks"):
        mix_attention(model)
    assert type(model.blocks[0].attn) is Attention
