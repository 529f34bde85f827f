"""The layer and the models' option: timm's values and gradients, what is saved, what runs twice, other runtimes."""

import copy
import inspect
import pickle

import pytest
import timm
import torch
from timm.layers import Attention
from timm.models import save_for_hf
from timm.models._features_fx import create_feature_extractor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from affnorm_zoo import AffineLikeLinear, L2Norm
from affnorm_zoo.diagnostics import measure_attention
from affnorm_zoo.evaluation.memory import saved_bytes
from affnorm_zoo.factory import recompute_attention
from affnorm_zoo.layers import RecomputedAttention

HEADS, DIM, TOKENS, IMAGES = 2, 8, 5, 3
NAME = "vit_nano_patch4_32_affinelike"
SMALL = dict(depth=2, embed_dim=24, num_classes=3)
FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"
# what fused attention keeps beside its output; hooks see it in checkpoints from torch 2.14 on
UNSEEN = 0 if "respect_saved_tensors_hooks" in inspect.signature(checkpoint).parameters else 4 * IMAGES * TOKENS * HEADS
MASKS = {
    "none": {},
    "causal": dict(is_causal=True),
    "bool": dict(attn_mask=torch.eye(TOKENS, dtype=torch.bool) | (torch.arange(TOKENS) < 3)),
    "bias": dict(attn_mask=torch.linspace(-2, 2, TOKENS**2).view(TOKENS, TOKENS)),
}
OPTIONS = {"plain": {}, "qk_norm": dict(qk_norm=True), "gated": dict(gated=True), "scale_norm": dict(scale_norm=True)}


def build(**options):
    torch.manual_seed(0)
    plain = Attention(DIM, HEADS, qkv_bias=True, norm_layer=L2Norm, **options)
    plain.qkv = AffineLikeLinear.replacing(plain.qkv)
    return plain, RecomputedAttention(copy.deepcopy(plain)), torch.randn(IMAGES, TOKENS, DIM, requires_grad=True)


class Operations(TorchDispatchMode):
    """The operations that run; those whose result a checkpoint has kept do not."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name().partition(".")[0])
        return func(*args, **kwargs or {})


def value_and_gradients(layer, x, **mask):
    """The output and the gradients of input and parameters, for a cotangent and a dropout that seeds decide."""
    torch.manual_seed(1)
    z = layer(x, **mask)
    g = torch.randn(z.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float32).to(z.dtype)
    return z, *torch.autograd.grad(z, [x, *layer.parameters()], g)


def assert_same(ours, theirs, x, **mask):
    pairs = zip(value_and_gradients(ours, x, **mask), value_and_gradients(theirs, x, **mask), strict=True)
    for ours_, theirs_ in pairs:
        assert torch.equal(ours_, theirs_)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "steps"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_values_and_gradients_are_timms_to_the_bit(options, mask, fused):
    plain, layer, x = build(**options)
    plain.fused_attn = layer.fused_attn = fused
    assert_same(layer, plain, x, **mask)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "steps"])
def test_dropout_draws_the_same_in_both_passes(fused):
    plain, layer, x = build(attn_drop=0.5)
    plain.fused_attn = layer.fused_attn = fused
    assert_same(layer, plain, x)


def test_under_autocast_too():
    plain, layer, x = build()
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(layer, plain, x)


def test_queries_keys_and_values_are_not_saved():
    plain, layer, x = build()
    plain.fused_attn = layer.fused_attn = True
    # q, k and v, and the divisor of qkv's input
    assert saved_bytes(plain, x) - saved_bytes(layer, x) - UNSEEN == 4 * IMAGES * TOKENS * (3 * DIM + 1)


def test_the_product_runs_twice_and_the_attention_once():
    _, layer, x = build()
    layer.fused_attn = True

    def counts(run):
        with Operations() as seen:
            run()
        return seen.names.count("aten::addmm"), seen.names.count(FUSED)

    assert counts(lambda: layer(x).sum().backward()) == (3, 1)  # qkv, proj, and qkv again
    with torch.no_grad():
        assert counts(lambda: layer(x)) == (2, 1)


def test_compiled_it_saves_as_little_and_has_the_same_gradients():
    plain, layer, x = build()
    plain.fused_attn = layer.fused_attn = True
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager_decomp_partition")
    z, expected = compiled(x), plain(x)
    torch.testing.assert_close(z, expected)
    g = torch.randn(z.shape)
    parameters = [x, *layer.parameters()], [x, *plain.parameters()]
    for ours, theirs in zip(*map(torch.autograd.grad, (z, expected), parameters, (g, g)), strict=True):
        torch.testing.assert_close(ours, theirs)
    heeded = torch.__version__ >= "2.11"  # earlier compilers do not heed what a checkpoint is told to keep
    assert saved_bytes(compiled, x) <= (saved_bytes(layer, x) + UNSEEN if heeded else saved_bytes(plain, x))


def test_it_can_be_differentiated_twice():
    plain, layer, x = build()
    found = []
    for module in (plain, layer):
        module.fused_attn = False  # torch has no second derivative of the fused one
        (dx,) = torch.autograd.grad(module(x).sin().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), [*module.parameters()], allow_unused=True))
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # vmap of the fused attention
def test_other_runtimes_compute_the_same():
    torch.manual_seed(0)
    model = timm.create_model(NAME, attention="recomputed", qk_norm=True, **SMALL)
    x = torch.randn(2, 3, 32, 32)
    y = model(x)
    twins = {
        "fx": lambda: create_feature_extractor(model, ["head"])(x)["head"],
        "export": lambda: torch.export.export(model, (x,)).module()(x),
        "script": lambda: torch.jit.script(model)(x),
        "copy": lambda: pickle.loads(pickle.dumps(copy.deepcopy(model)))(x),
        "inference": lambda: torch.inference_mode()(model)(x),
    }
    for name, twin in twins.items():
        torch.testing.assert_close(twin(), y, msg=lambda m, name=name: f"{name}: {m}")
    mapped = torch.vmap(lambda image: torch.func.functional_call(model, {}, (image[None],))[0])(x)
    torch.testing.assert_close(mapped, y)


def test_the_option_changes_no_function_no_start_and_no_key(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(NAME, attention="recomputed", **SMALL)
    torch.manual_seed(0)
    plain = timm.create_model(NAME, **SMALL)
    for (name, ours), (other, theirs) in zip(model.state_dict().items(), plain.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(ours, theirs)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), plain(x))
    for ours, theirs in zip(measure_attention(model, x), measure_attention(plain, x), strict=True):
        assert torch.equal(ours.values, theirs.values)
        assert torch.equal(ours.logits, theirs.logits)
    model.init_weights()  # queries and keys start small
    first = model.blocks[0].attn.qkv
    assert first.weight[:48].std() < 0.5 * first.weight[48:].std()
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert isinstance(loaded.blocks[0].attn, RecomputedAttention)


def test_it_works_inside_checkpointed_blocks():
    model = timm.create_model(NAME, attention="recomputed", **SMALL)
    x, g = torch.randn(2, 3, 32, 32), torch.randn(2, 3)

    def gradients(enable):
        model.set_grad_checkpointing(enable)
        return torch.autograd.grad(model(x), [*model.parameters()], g)

    for actual, expected in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(actual, expected)


def test_what_cannot_be_recomputed_is_refused():
    model = timm.create_model(NAME, attention="mixed", **SMALL)
    with pytest.raises(ValueError, match="needs timm's Attention, and the model has none"):
        recompute_attention(model)
    with pytest.raises(ValueError, match="attention must be a timm Attention, got MixedAttention"):
        RecomputedAttention(model.blocks[0].attn)
    model = timm.create_model(NAME, **SMALL)
    model.blocks[1].attn.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"'blocks.1.attn' has hooks"):
        recompute_attention(model)
    assert type(model.blocks[0].attn) is Attention
