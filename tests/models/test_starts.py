"""How networks start: sizes of activations, branches, attention and embeddings, and a second initialisation."""

from itertools import product

import pytest
import timm
import torch
from torch import nn

import affnorm_zoo

SCALES = ["rms", "rms4", "unit"]
DEPTH_CASES = [
    ("resnet152_patchnorm", "rms4"),
    ("resnext50_32x4d_patchnorm", "rms"),
    *[("resnet56_cifar_patchnorm", scale) for scale in SCALES],
]
SLOW_DEPTH_CASES = [
    ("resnet152_patchnorm", "rms"), ("resnet152_patchnorm", "unit"),
    ("resnext50_32x4d_patchnorm", "rms4"), ("resnext50_32x4d_patchnorm", "unit"),
    *product(["resnet152_patchnorm_l2", "resnet152_patchnorm_ws", "vit_large_patch16_224_normlike"], SCALES),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "norm_scale"),
    [*DEPTH_CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_DEPTH_CASES)],
)
def test_activations_neither_vanish_nor_explode(name, norm_scale):
    """RMS of stem, blocks and head within a factor of ten of each other at initialisation."""
    model = timm.create_model(name, norm_scale=norm_scale).eval()
    rms = {}

    def record(layer):
        return lambda module, args, out: rms.__setitem__(layer, out.float().square().mean().sqrt().item())

    for layer, module in model.named_modules():
        if type(module).__name__ in ("BasicBlock", "Bottleneck", "Block") or layer in ("conv1", "patch_embed", "norm"):
            module.register_forward_hook(record(layer))
    size = 224 if name.startswith("vit") else 96
    with torch.no_grad():
        model(torch.randn(1, 3, size, size))
    assert len(rms) > 20 or "resnext50" in name
    assert max(rms.values()) <= 10 * min(rms.values()), rms


FAMILY_CASES = ["efficientnet_b3", "tf_efficientnet_lite0", "mobilenetv2_100", "mobilenetv3_large_100",
                "regnety_032", "resnetv2_101", "densenet201"]  # fmt: skip


@pytest.mark.parametrize("arch", FAMILY_CASES)
@pytest.mark.parametrize(
    "normalizer", ["patchnorm", *(pytest.param(n, marks=pytest.mark.slow) for n in ("patchnorm_l2", "patchnorm_ws"))]
)
def test_activations_of_a_family_neither_vanish_nor_explode(arch, normalizer):
    """RMS of what the stages put out within a factor of ten of each other at initialisation."""
    model = timm.create_model(f"{arch}_{normalizer}", features_only=True).eval()
    with torch.no_grad():
        features = model(torch.randn(1, 3, 128, 128))
    rms = [feature.square().mean().sqrt().item() for feature in features]
    assert len(rms) == 5
    assert max(rms) <= 10 * min(rms), rms


TRANSFORMERS = {
    "convnext_tiny": {}, "convnextv2_atto": {}, "deit3_small_patch16_224": {}, "swin_tiny_patch4_window7_224": {},
    "swinv2_tiny_window8_256": {}, "eva02_base_patch14_224": dict(embed_dim=192, num_heads=3),
    "beit_base_patch16_224": dict(embed_dim=192, num_heads=3), "mixer_s32_224": {}, "gmlp_ti16_224": {},
    "resmlp_12_224": {},
}  # fmt: skip


@pytest.mark.parametrize("arch", TRANSFORMERS)
@pytest.mark.parametrize("normalizer", ["affinelike", pytest.param("normlike", marks=pytest.mark.slow)])
def test_activations_of_a_transformer_neither_vanish_nor_explode(arch, normalizer):
    """RMS of embedding, blocks and last norm within a factor of ten of each other at initialisation."""
    model = timm.create_model(f"{arch}_{normalizer}", **TRANSFORMERS[arch]).eval()
    outputs = []
    for name, module in model.named_modules():
        if type(module).__name__.endswith("Block") or name in ("patch_embed", "stem", "norm", "fc_norm", "head.norm"):
            module.register_forward_hook(lambda module, args, out: outputs.append(out))
    with torch.no_grad():
        model(torch.randn(1, *model.pretrained_cfg["input_size"]))
    rms = [out.square().mean().sqrt().item() for out in outputs]
    assert len(rms) >= 10
    assert max(rms) <= 10 * min(rms), rms


@pytest.mark.parametrize("name", ["resnet18_patchnorm_ws", "resnet20_cifar_patchnorm", "resnet20_cifar_groupnorm"])
def test_zero_init_last_is_heeded(name):
    damped, plain = (timm.create_model(name, zero_init_last=flag).layer1[0] for flag in (True, False))
    x = torch.randn(2, damped.conv1.in_channels, 8, 8)
    branch = [block.bn2(block.conv2(block.conv1(x))).std().item() for block in (damped, plain)]
    assert branch[0] < 0.35 * branch[1]


VIT_OPTIONS = dict(
    init_values=0.1, reg_tokens=2, qk_norm=True, scale_attn_norm=True, scale_mlp_norm=True, pre_norm=True,
    global_pool="map", class_token=False,
)  # fmt: skip
EMPTIED = {
    "resnet20_cifar_patchnorm": {}, "resnet20_cifar_patchnorm_ws": {}, "resnet20_cifar_batchnorm": {},
    "resnet20_cifar_groupnorm": {}, "resnet20_cifar_layernorm": {}, "resnet20_cifar_none": {},
    "resnet50d_patchnorm_l2": {}, "resnext50_32x4d_patchnorm": {}, "seresnet50_patchnorm_ws": {},
    "resnet18_patchnorm": dict(block_args=dict(attn_layer="eca")),
    "efficientnet_b0_patchnorm": {}, "mobilenetv3_small_050_patchnorm_ws": {}, "regnety_002_patchnorm": {},
    "resnetv2_18_patchnorm_l2": {}, "densenet121_patchnorm": {},
    "vit_nano_patch4_32_affinelike": {}, "vit_nano_patch4_32_normlike": VIT_OPTIONS,
    "vit_nano_patch4_32_layernorm": VIT_OPTIONS, "vit_nano_patch4_32_derf": {}, "vit_tiny_patch16_224_affinelike": {},
    "convnext_atto_affinelike": {}, "convnextv2_atto_normlike": dict(conv_mlp=False),
    "deit_tiny_distilled_patch16_224_affinelike": dict(depth=2), "mixer_s32_224_affinelike": {},
    "gmlp_ti16_224_affinelike": {}, "resmlp_12_224_normlike": {},
    "swin_tiny_patch4_window7_224_affinelike": dict(depths=(2, 2), num_heads=(3, 6)),
    "swinv2_tiny_window8_256_affinelike": dict(depths=(2, 2), num_heads=(3, 6)),
    "eva02_tiny_patch14_224_affinelike": dict(depth=2), "eva02_base_patch14_224_normlike": dict(depth=1),
    "beit_base_patch16_224_affinelike": dict(depth=2, embed_dim=192, num_heads=3),
}  # fmt: skip


# layers and blocks like those of another entry: tested once a week
ALIKE = {
    "resnet20_cifar_patchnorm",
    "resnet20_cifar_groupnorm",
    "resnet20_cifar_layernorm",
    "resnext50_32x4d_patchnorm",
    "regnety_002_patchnorm",
    "densenet121_patchnorm",
    "vit_nano_patch4_32_affinelike",
    "vit_nano_patch4_32_derf",
    "convnextv2_atto_normlike",
    "gmlp_ti16_224_affinelike",
    "swin_tiny_patch4_window7_224_affinelike",
    "eva02_base_patch14_224_normlike",
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in ALIKE else []) for n in EMPTIED])
def test_init_weights_restores_an_emptied_model(name):
    torch.manual_seed(1)
    model = timm.create_model(name, **EMPTIED[name])
    with torch.device("meta"):
        emptied = timm.create_model(name, **EMPTIED[name])
    emptied.to_empty(device="cpu")
    for p in emptied.parameters():
        nn.init.constant_(p, float("nan"))
    emptied.init_weights()
    for (key, was), now in zip(model.state_dict().items(), emptied.state_dict().values(), strict=True):
        assert now.isfinite().all(), key
        if was.numel() > 1000:
            assert now.std() == pytest.approx(was.std().item(), rel=0.2), key
    emptied.load_state_dict(model.state_dict())
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    with torch.no_grad():  # what no state dict holds, such as masks of an attention, is there again
        assert torch.equal(emptied.eval().forward_features(x), model.eval().forward_features(x))


def test_building_draws_no_more_than_timm_and_the_layers_do():
    """A seed gives the weights that it gave before the classifier's could be drawn again."""
    torch.manual_seed(0)
    model = timm.create_model("resnet20_cifar_patchnorm")
    drawn = torch.rand(1)
    torch.manual_seed(0)
    model.init_weights()
    assert torch.rand(1) != drawn
    torch.manual_seed(0)
    again = timm.create_model("resnet20_cifar_patchnorm")
    assert torch.rand(1) == drawn
    assert not torch.equal(again.fc.weight, model.fc.weight)


@pytest.mark.parametrize("mode", ["jax", "moco", ""])
def test_weight_init_modes_leave_divergence_free_layers_to_their_own_rule(mode):
    model = timm.create_model("vit_nano_patch4_32_affinelike", weight_init=mode)
    layer = model.blocks[3].mlp.fc1
    assert layer.weight.std().item() == pytest.approx(1 / layer.c, rel=0.05)


@pytest.mark.parametrize("name", ["vit_nano_patch4_32_affinelike", "vit_nano_patch4_32_normlike"])
def test_attention_starts_by_looking_everywhere(name):
    attn = timm.create_model(name).blocks[3].attn
    query, key, value = attn.qkv(torch.randn(2, 65, 96)).chunk(3, dim=-1)
    assert value.std() > 4 * query.std()
    heads = (part.unflatten(-1, (attn.num_heads, attn.head_dim)).transpose(1, 2) for part in (query, key))
    logits = next(heads) @ next(heads).mT * attn.scale
    # a logit is a sum of head_dim products of two RMS of at most 0.2, over √head_dim
    assert logits.std() <= 0.05


@pytest.mark.parametrize("name", ["vit_nano_patch4_32_affinelike", "vit_nano_patch4_32_normlike"])
def test_branches_of_a_transformer_start_small(name):
    block = timm.create_model(name).blocks[3]
    for layer in (block.attn.proj, block.mlp.fc2):
        # an RMS of at most 1 for undamped weights of variance 1/c², a tenth of it here; a third is left to chance
        assert layer(torch.randn(2, 65, layer.in_features)).square().mean().sqrt() <= 0.13


@pytest.mark.parametrize("anew", [False, True], ids=["built", "initialised anew"])
@pytest.mark.parametrize("option", ["damp_branches", "damp_attention"])
def test_the_small_starts_of_a_transformer_can_be_left_out_one_by_one(option, anew):
    """Of the parts of a block only those that the option names start at their full size, 1/c."""
    model = timm.create_model("vit_nano_patch4_32_affinelike", **{option: False})
    if anew:
        model.init_weights()
    attn, mlp = model.blocks[3].attn, model.blocks[3].mlp
    query_key, value = attn.qkv.weight[: 2 * 96], attn.qkv.weight[2 * 96 :]
    expected = {"damp_branches": (0.2, 1, 1, 1), "damp_attention": (1, 1, 0.1, 0.1)}[option]
    parts = (query_key, value, attn.proj.weight, mlp.fc2.weight)
    for weight, layer, start in zip(parts, (attn.qkv, attn.qkv, attn.proj, mlp.fc2), expected, strict=True):
        # the deviation of n normal draws is off by 1/√(2n), 0.7 % for the smallest part
        assert weight.std().item() * layer.c == pytest.approx(start, rel=0.04)


def starts(model):
    """RMS of tokens of white noise, of positions, and the deviations of kernels in units of 1/c."""
    block, size = model.blocks[2], model.patch_embed.img_size
    with torch.no_grad():
        tokens = model.patch_embed(torch.randn(8, 3, *size))
    layers = (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
    found = [tokens.square().mean().sqrt(), model.pos_embed.std(), *(layer.weight.std() * layer.c for layer in layers)]
    return [value.item() for value in found]


@pytest.mark.parametrize("anew", [{}, {"needs_reset": True}, {"needs_reset": False}], ids=str)
def test_tokens_of_large_transformers_start_longer_than_kappa(anew):
    # timm draws kernels within ±1/√n, which is a variance of 1/(3n); the smallest part holds 37,000 numbers, 0.4 %
    expected = [10 / 3**0.5, 0.2, 1, 1, 1, 1]
    given = timm.create_model("vit_tiny_patch16_224", norm_layer=affnorm_zoo.norm_layer("affinelike"))
    affnorm_zoo.bind(given)
    registered = timm.create_model("vit_tiny_patch16_224_affinelike")
    if anew:
        registered.init_weights(**anew)
    for model in (given, registered):
        assert starts(model) == pytest.approx(expected, rel=0.03)
    small = timm.create_model("vit_tiny_patch4_32_affinelike", damp_attention=False)
    assert starts(small) == pytest.approx([1 / 3**0.5, 0.02, 1, 0.1, 1, 0.1], rel=0.05)
