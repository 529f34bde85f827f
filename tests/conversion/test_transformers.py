import copy

import pytest
import timm
import torch
from timm.layers import LayerScale
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from affnorm_zoo import AffineLikeLinear, L2Norm, NormLikeLinear, convert
from affnorm_zoo.errors import UsageError

SMALL = dict(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=5)


def settle(model, eps=0.0):
    """Random γ, β, biases and embeddings away from their start; float64, evaluation mode."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, mean=0.1, std=0.2)
            if module.bias is not None:
                nn.init.normal_(module.bias)
        if isinstance(module, LayerScale):
            nn.init.normal_(module.gamma)
    beside_layers = (
        "cls_token", "reg_token", "dist_token", "pos_embed", "gamma_1", "gamma_2", "q_bias", "v_bias",
        "relative_position_bias_table",
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] in beside_layers:
            nn.init.normal_(parameter, mean=0.5)
    return model.double().eval()


def vit(kind=VisionTransformer, **options):
    return settle(kind(**{**SMALL, **options}))


def images(count=16, seed=3):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


VITS = {
    "class token": {},
    "layer scale, registers": dict(init_values=0.1, reg_tokens=2, no_embed_class=True),
    "average pool": dict(global_pool="avg", class_token=False),
    "average pool behind the norm": dict(global_pool="avg", fc_norm=False),
    "no qkv bias": dict(qkv_bias=False),
    "gated": dict(mlp_layer=timm.layers.SwiGLU, act_layer=nn.SiLU),
    "any size": dict(dynamic_img_size=True),
    "no classifier": dict(num_classes=0),
    "no positions": dict(pos_embed="none"),
    "distilled": dict(kind=VisionTransformerDistilled),
    "EVA": dict(kind=Eva, init_values=0.1),
    "EVA02": dict(kind=Eva, qkv_fused=False, swiglu_mlp=True, use_rot_pos_emb=True),
    "DINOv3": dict(
        kind=Eva, init_values=0.1, attn_type="rope", rope_type="dinov3", use_rot_pos_emb=True, use_abs_pos_emb=False,
        num_reg_tokens=2, qkv_bias=False, use_fc_norm=False, dynamic_img_size=True,
    ),
    "BEiT": dict(kind=Beit, init_values=0.1, use_abs_pos_emb=False, use_rel_pos_bias=True),
    "BEiT, class token": dict(kind=Beit, global_pool="token", use_shared_rel_pos_bias=True, swiglu_mlp=True),
    "scaled attention alone": dict(kind=Eva, init_values=0.1, attn_only_layer_scale=True, global_pool="avg"),
}  # fmt: skip


@pytest.mark.parametrize("case", VITS)
def test_without_eps_normlike_is_exact(case):
    source = vit(**VITS[case])
    before = copy.deepcopy(source.state_dict())
    conversion = convert(source, "normlike")
    expected = source(images())
    torch.testing.assert_close(conversion.model(images()), expected, rtol=0, atol=1e-10 * expected.abs().max().item())
    assert conversion.layers == ()
    assert conversion.logit_error is None
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())
    twin = conversion.model
    assert isinstance(twin.blocks[0].mlp.fc2, nn.Linear)
    assert isinstance(twin.blocks[0].norm1, nn.Identity)
    is_norm_kept = case == "no classifier"
    assert isinstance(twin.norm, nn.LayerNorm) == is_norm_kept
    assert any(isinstance(module, L2Norm) for module in twin.modules()) != is_norm_kept
    read = ("qkv", "q_proj", "k_proj", "v_proj", "gate", "fc1", "fc1_g", "fc1_x")
    assert {name.rpartition(".")[2] for name, m in twin.named_modules() if isinstance(m, NormLikeLinear)} <= set(read)


@pytest.mark.parametrize("kind", [VisionTransformer, Eva, Beit])
def test_the_residual_stream_has_mean_zero(kind):
    twin, seen = convert(vit(kind, init_values=0.1), "normlike").model, []
    for block in twin.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(out))
    twin(images())
    assert all(out.mean(-1).abs().max() < 1e-12 * out.abs().max() for out in seen)


def test_what_the_lost_eps_costs_is_said():
    source = vit()
    for module in source.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-3
    variances = []
    for module in source.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(lambda m, args: variances.append(args[0].var(-1, correction=0).min()))
    source(images())
    most = ((1 + 1e-3 / min(variances)).sqrt() - 1).item()
    for module in source.modules():
        module._forward_pre_hooks.clear()
    conversion = convert(source, "normlike", images=images())
    assert conversion.notes == (
        "an L2 norm has no eps; the layer norms had 0.001 beside the variance: normalised tokens change by at most "
        f"{most:.1g} of their size",
    )
    assert 0 < conversion.logit_error < 10 * most
    assert conversion.num_held_out == 16


@pytest.mark.parametrize("name", ["normlike", "affinelike"])
@pytest.mark.parametrize("unnormed", ["plain", "bind"])
def test_the_twin_loads_under_the_zoos_name(name, unnormed):
    source = settle(timm.create_model("vit_nano_patch4_32_layernorm"))
    pixels = torch.rand(16, 3, 32, 32, dtype=torch.float64)
    pixels = (pixels - torch.tensor(source.pretrained_cfg["mean"]).reshape(3, 1, 1)) / torch.tensor(
        source.pretrained_cfg["std"]
    ).reshape(3, 1, 1)
    conversion = convert(source, name, images=pixels, unnormed=unnormed)
    assert conversion.name == f"vit_nano_patch4_32_{name}"
    built = timm.create_model(conversion.name, norm_scale="rms4", unnormed=unnormed).double().eval()
    built.load_state_dict(conversion.model.state_dict())
    assert torch.equal(built(pixels), conversion.model(pixels))
    fitted = {"normlike": 0, "affinelike": 2}[name] + {"plain": 0, "bind": 2}[unnormed]
    assert len(conversion.layers) == 6 * fitted


@pytest.mark.parametrize("arch", ["eva02_tiny_patch14_224", "beitv2_base_patch16_224", "deit3_small_patch16_224"])
def test_a_relative_loads_under_the_zoos_name(arch):
    """Those that have LayerScale by default lose it in the conversion, and are built without."""
    sizes = dict(img_size=28, patch_size=14, embed_dim=24, depth=2, num_heads=3, num_classes=5)
    source = settle(timm.create_model(arch, **sizes))
    conversion = convert(source, "normlike")
    assert conversion.name == f"{arch}_normlike"
    own = {} if "eva" in arch else dict(init_values=0.0)
    built = timm.create_model(conversion.name, norm_scale="rms4", unnormed="plain", **own, **sizes).double().eval()
    built.load_state_dict(conversion.model.state_dict())
    pixels = torch.rand(2, 3, 28, 28, dtype=torch.float64)
    assert torch.equal(built(pixels), conversion.model(pixels))


def test_affinelike_is_fitted_in_the_order_of_execution():
    source = vit()
    conversion = convert(source, "affinelike", images=images(64), unnormed="bind", fit="lstsq")
    names = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert [row.name for row in conversion.layers] == [f"blocks.{i}.{name}" for i in range(2) for name in names]
    for fit in ("layer", "channel"):
        other = convert(source, "affinelike", images=images(64), unnormed="bind", fit=fit)
        assert other.layers[0].predicted_error > conversion.layers[0].predicted_error
    assert conversion.model.blocks[0].mlp.fc2.input_activation == "gelu"
    assert isinstance(conversion.model.blocks[0].mlp.fc2, AffineLikeLinear)
    assert conversion.model.blocks[0].attn.qkv.bias is not None


def test_affinelike_without_kappa_to_speak_of_is_the_network_but_for_its_biases():
    source = vit()
    for block in source.blocks:
        for norm, layer in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
            nn.init.zeros_(norm.bias)
            nn.init.zeros_(layer.bias)
    twin = convert(source, "affinelike", images=images(), scale=(24**0.5, 1e-6), fit="layer").model
    torch.testing.assert_close(twin(images(seed=5)), source(images(seed=5)), rtol=0, atol=1e-9)


REFUSED = {
    "norms of queries": (dict(qk_norm=True), "blocks.0.attn.q_norm is a norm"),
    "norms behind the branches": (dict(block_fn=timm.models.vision_transformer.ResPostBlock), "is a ResPostBlock"),
    "norm of the embedding": (dict(pre_norm=True), "norm_pre is a norm"),
    "maximum": (dict(global_pool="max"), "global_pool='max'"),
    "attention pool": (dict(global_pool="map", class_token=False), "global_pool='map'"),
    "norm in the MLP": (dict(scale_mlp_norm=True), "blocks.0.mlp.norm is a norm"),
    "group norm": (dict(norm_layer=nn.BatchNorm1d), "no LayerNorm to convert"),
    "norm in the gated MLP": (dict(kind=Eva, swiglu_mlp=True, scale_mlp=True), "blocks.0.mlp.norm is a norm"),
    "BEiT's norm in the MLP": (dict(kind=Beit, scale_mlp=True), "blocks.0.mlp.norm is a norm"),
    "EVA behind the branches": (dict(kind=Eva, use_post_norm=True), "is a EvaBlockPostNorm"),
    "EVA's norm of the embedding": (dict(kind=Eva, use_pre_transformer_norm=True), "norm_pre is a norm"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_transformers_are_refused(case):
    options, message = REFUSED[case]
    with pytest.raises(UsageError, match=message):
        convert(vit(**options), "normlike")


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto", "mixer_s32_224", "gmlp_ti16_224"])
def test_where_it_would_not_be_exact_the_norm_is_named(name):
    with pytest.raises(
        UsageError, match=r"is not part of a timm VisionTransformer or Eva or Beit: .* would not be exact"
    ):
        convert(timm.create_model(name), "normlike")


def test_features_before_the_last_norm_are_refused():
    source = timm.create_model("vit_tiny_patch16_224", features_only=True, out_indices=1, **{**SMALL, "num_classes": 0})
    with pytest.raises(UsageError, match="changes the model's outputs"):
        convert(settle(source), "normlike", images=2 * images() - 1)


def test_a_normaliser_of_other_layers_is_named():
    with pytest.raises(UsageError, match=r"is a LayerNorm.*use 'normlike'"):
        convert(vit(), "patchnorm", images=images())
    with pytest.raises(UsageError, match=r"no LayerNorm to convert to 'normlike'.*use 'patchnorm'"):
        convert(timm.create_model("resnet10t"), "normlike")
    with pytest.raises(UsageError, match="give images"):
        convert(vit(), "affinelike")
