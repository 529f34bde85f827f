import json
import warnings
from types import ModuleType

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from timm.optim import param_groups_layer_decay
from torch import nn

import affnorm_zoo
from affnorm_zoo import AffineLikeLinear, NormLikeLinear, PatchNormConv2d, list_normalizers

CONV, LINEAR = ("patchnorm", "patchnorm_l2", "patchnorm_ws"), ("affinelike", "normlike")
IMAGENET_RESNETS = (
    "resnet18", "resnet26", "resnet34", "resnet50", "resnet101", "resnet152",
    "resnet50d", "wide_resnet50_2", "resnext50_32x4d", "seresnet50",
)  # fmt: skip
CIFAR_RESNETS = ("resnet20_cifar", "resnet56_cifar", "resnet18_cifar")
IMAGENET_VITS = tuple(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large"))
CIFAR_VITS = ("vit_nano_patch4_32", "vit_tiny_patch4_32")
BASELINES = ("batchnorm", "groupnorm", "layernorm", "rmsnorm", "none", "softsign")
TOKEN_BASELINES = ("layernorm", "rmsnorm", "softsign", "dyt", "derf")


def zoo():
    return [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("affnorm_zoo.")]


def test_the_zoo_holds_every_architecture_with_every_normaliser():
    expected = {f"{arch}_{norm}" for arch in IMAGENET_RESNETS + CIFAR_RESNETS for norm in CONV}
    expected |= {f"{arch}_{norm}" for arch in CIFAR_RESNETS for norm in BASELINES}
    expected |= {f"{arch}_{norm}" for arch in IMAGENET_VITS + CIFAR_VITS for norm in LINEAR}
    expected |= {f"{arch}_{norm}" for arch in CIFAR_VITS for norm in TOKEN_BASELINES}
    assert set(zoo()) == expected
    assert set(timm.list_models("*patchnorm*")) == {name for name in expected if "patchnorm" in name}
    assert set(CONV + LINEAR + BASELINES + TOKEN_BASELINES) == set(list_normalizers())


@pytest.mark.parametrize("arch", IMAGENET_RESNETS + IMAGENET_VITS)
def test_sizes_are_timms_but_for_the_norm(arch):
    """A bias per channel where a batch norm had scale and bias; no scale and bias where a layer norm had them."""
    with torch.device("meta"):
        reference = timm.create_model(arch)
        model = timm.create_model(f"{arch}_{'patchnorm' if 'resne' in arch else 'affinelike'}")
    norms = [m for m in reference.modules() if isinstance(m, (nn.BatchNorm2d, nn.LayerNorm))]
    affine = sum(m.weight.numel() for m in norms)
    kept = affine if "resne" in arch else 0
    assert (
        sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in reference.parameters()) - 2 * affine + kept
    )
    shared = {name: tuple(p.shape) for name, p in reference.named_parameters() if name.endswith("conv1.weight")}
    assert shared.items() <= {name: tuple(p.shape) for name, p in model.named_parameters()}.items()


DEPTH_CASES = ["resnet152_patchnorm", "resnet152_patchnorm_l2", "resnet152_patchnorm_ws", "resnext50_32x4d_patchnorm",
               "resnet56_cifar_patchnorm", "vit_large_patch16_224_normlike"]  # fmt: skip


@pytest.mark.parametrize("name", DEPTH_CASES)
@pytest.mark.parametrize("norm_scale", ["rms", "rms4", "unit"])
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
    "vit_nano_patch4_32_affinelike": {}, "vit_nano_patch4_32_normlike": VIT_OPTIONS,
    "vit_nano_patch4_32_layernorm": VIT_OPTIONS, "vit_nano_patch4_32_derf": {}, "vit_tiny_patch16_224_affinelike": {},
}  # fmt: skip


@pytest.mark.parametrize("name", EMPTIED)
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


@pytest.mark.parametrize("name", ["resnet18_patchnorm", "resnet50_patchnorm_l2", "resnet50d_patchnorm_ws",
                                  "vit_nano_patch4_32_affinelike", "vit_nano_patch4_32_normlike"])  # fmt: skip
def test_without_absorbing_every_activation_is_a_module_and_the_function_the_same(name, tmp_path):
    kinds = (nn.ReLU, nn.GELU)
    reference = timm.create_model(name.rpartition("_patchnorm")[0] if "resnet" in name else "vit_tiny_patch16_224")
    absorbed = timm.create_model(name, num_classes=3)
    modular = timm.create_model(name, num_classes=3, absorb=False)
    modular.load_state_dict(absorbed.state_dict())

    def count(model):
        return sum(isinstance(module, kinds) for module in model.modules())

    per_network = {"vit_nano_patch4_32": 6}.get(name.rpartition("_")[0], count(reference))
    assert count(modular) == per_network > count(absorbed)
    x = torch.randn(2, 3, 64, 64) if "resnet" in name else torch.randn(2, 3, 32, 32)
    g = torch.randn(2, 3)
    gradients = []
    for model in (absorbed, modular):
        y = model(x)
        gradients.append((y, *torch.autograd.grad(y, [*model.parameters()], g)))
    for actual, expected in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    save_for_hf(modular, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert count(loaded) == per_network
    for module in loaded.modules():  # and so each can be replaced
        for child_name, child in list(module.named_children()):
            if isinstance(child, kinds):
                setattr(module, child_name, nn.SiLU())
    assert not torch.equal(loaded.eval()(x), modular.eval()(x))


@pytest.mark.parametrize("name", ["resnet20_cifar_patchnorm", "resnet50_patchnorm_ws", "resnet50d_patchnorm_l2"])
@pytest.mark.parametrize("absorb", [True, False])
def test_hooks_on_every_convolution_keep_its_output_and_its_gradient(name, absorb):
    model = timm.create_model(name, num_classes=3, absorb=absorb).eval()
    convs = {key: module for key, module in model.named_modules() if isinstance(module, PatchNormConv2d)}
    forward, backward, handles = {}, {}, []
    for key, module in convs.items():
        handles += [
            module.register_forward_hook(lambda m, i, o, key=key: forward.update({key: (i[0].clone(), o.detach())})),
            module.register_full_backward_hook(lambda m, dx, dz, key=key: backward.update({key: dz[0]})),
        ]
    x, g = torch.randn(1, 3, 64, 64, requires_grad=True), torch.randn(1, 3)
    (hooked,) = torch.autograd.grad(model(x), x, g)
    for handle in handles:
        handle.remove()
    (plain,) = torch.autograd.grad(model(x), x, g)
    assert torch.equal(hooked, plain)
    assert backward.keys() == forward.keys() == convs.keys()
    for key, (input_, kept) in forward.items():
        with torch.no_grad():
            assert torch.equal(convs[key](input_), kept), key


def test_vit_options_of_timm():
    name = "vit_nano_patch4_32_affinelike"
    assert timm.create_model(name, img_size=48)(torch.randn(1, 3, 48, 48)).shape == (1, 10)
    dynamic = timm.create_model(name, dynamic_img_size=True)
    assert dynamic(torch.randn(1, 3, 40, 56)).shape == (1, 10)
    averaged = timm.create_model(name, global_pool="avg", num_classes=3, drop_path_rate=0.1)
    assert averaged(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert isinstance(averaged.blocks[0].mlp.fc2, AffineLikeLinear)
    kinds = [m for m in timm.create_model("vit_nano_patch4_32_normlike").modules() if isinstance(m, NormLikeLinear)]
    assert len(kinds) == 6 * 4


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


def test_cifar_stages_and_reductions():
    model = timm.create_model("resnet20_cifar_patchnorm", features_only=True)
    assert model.feature_info.channels() == [16, 16, 32, 64]
    assert model.feature_info.reduction() == [1, 1, 2, 4]
    assert [tuple(f.shape[2:]) for f in model(torch.randn(1, 3, 32, 32))] == [(32, 32), (32, 32), (16, 16), (8, 8)]


def test_wrong_options_are_named():
    for norm_scale in ("root", [4.0, 4.0]):
        with pytest.raises(ValueError, match="norm_scale must be one of 'unit', 'rms', 'rms4'"):
            timm.create_model("resnet18_patchnorm", norm_scale=norm_scale)
    with pytest.raises(ValueError, match="does not apply to 'batchnorm'"):
        timm.create_model("resnet20_cifar_batchnorm", norm_scale="unit")
    for option in ({"damp_branches": False}, {"enlarge_tokens": True}):
        with pytest.raises(ValueError, match=r"enlarge_tokens are for .* do not apply to 'layernorm'"):
            timm.create_model("vit_nano_patch4_32_layernorm", **option)
    with pytest.raises(RuntimeError, match="there are no pretrained weights for resnet18_patchnorm"):
        timm.create_model("resnet18_patchnorm", pretrained=True)


STEM_CASES = ["resnet18_patchnorm", "resnet18_patchnorm_l2", "resnet18_patchnorm_ws", "resnet50d_patchnorm"]


@pytest.mark.parametrize("name", STEM_CASES)
@pytest.mark.parametrize("norm_scale", ["rms", "rms4", "unit"])
@pytest.mark.parametrize("in_chans", [1, 6])
def test_a_stem_keeps_its_response_to_grey_images_of_other_channel_counts(name, norm_scale, in_chans, tmp_path):
    source = timm.create_model(name, norm_scale=norm_scale, num_classes=4).eval()
    with torch.no_grad():
        for key, p in source.named_parameters():
            if key.endswith(".bias") or "gain" in key:
                p.add_(0.3 * torch.randn_like(p))
    file = tmp_path / "weights.safetensors"
    save_file(source.state_dict(), file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = timm.create_model(
            name, norm_scale=norm_scale, num_classes=4, in_chans=in_chans, pretrained=True,
            pretrained_cfg_overlay=dict(file=str(file), num_classes=4),
        ).eval()  # fmt: skip
    grey = torch.randn(2, 1, 64, 64)
    expected, actual = source(grey.expand(-1, 3, -1, -1)), adapted(grey.expand(-1, in_chans, -1, -1))
    # exact but for float32 roundings and, under weight standardisation, eps = 1e-6 beside a variance of about 1e-2
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18_patchnorm_ws", dict(num_classes=7, in_chans=2, norm_scale="unit")),
        ("resnet20_cifar_patchnorm_l2", dict(num_classes=3)),
        ("vit_nano_patch4_32_affinelike", dict(global_pool="avg", num_classes=5)),
        ("vit_nano_patch4_32_normlike", dict(img_size=24)),
        ("resnet20_cifar_patchnorm_ws.c10_e15_rms4", dict()),
        ("resnet20_cifar_patchnorm_ws.c10_e15_rms4", dict(norm_scale="unit")),
    ],
)
def test_local_dir_round_trip_is_exact(name, options, tmp_path):
    model = timm.create_model(name, **options).eval()
    if "in_chans" in options:
        model.pretrained_cfg["input_size"] = (options["in_chans"], 64, 64)
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    size = options.get("img_size", 64 if "resnet18" in name else 32)
    x = torch.randn(2, options.get("in_chans", 3), size, size)
    assert torch.equal(model(x), loaded(x))
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=2).num_classes == 2


def test_reparameterized_model_is_the_plain_one_with_the_same_outputs():
    model = timm.create_model("resnet20_cifar_patchnorm_ws", pretrained=True).eval()
    plain = timm.create_model("resnet20_cifar_patchnorm").eval()
    fast = timm.utils.reparameterize_model(model)
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(fast(x), model(x))
        assert torch.equal(plain(x), model(x))
    assert plain.state_dict().keys() < model.state_dict().keys()  # the gains are still there, in the model itself


@pytest.mark.parametrize(
    "name", ["resnet20_cifar_patchnorm_ws.c10_e15_rms4", "resnet18_patchnorm_ws", "resnet18_patchnorm"]
)
@pytest.mark.parametrize("inplace", [False, True])
def test_an_export_names_the_architecture_that_a_reparameterized_model_is(name, inplace, tmp_path):
    model = timm.create_model(name, num_classes=3).eval()
    fast = timm.utils.reparameterize_model(model, inplace=inplace)
    save_for_hf(fast, tmp_path, safe_serialization=True)
    architecture = json.loads((tmp_path / "config.json").read_text())["architecture"]
    assert architecture == name.split(".")[0].removesuffix("_ws")
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), fast(x))
    if not inplace:
        assert model.pretrained_cfg["architecture"] == name.split(".")[0]


def test_a_half_reparameterized_model_is_not_exported(tmp_path):
    model = timm.create_model("resnet20_cifar_patchnorm_ws")
    model.conv1.reparameterize()
    with pytest.raises(ValueError, match="1 of 21 layers are reparameterized"):
        save_for_hf(model, tmp_path, safe_serialization=True)


def test_drop_path_checkpointing_and_layer_decay_work():
    model = timm.create_model("resnet20_cifar_patchnorm", drop_path_rate=0.2)
    model.set_grad_checkpointing()
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    groups = param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.9)
    undecayed = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    assert all(id(m.bias) in undecayed for m in model.modules() if isinstance(m, PatchNormConv2d))


def test_public_names():
    names = {name for name, value in vars(affnorm_zoo).items() if not name.startswith("_")}
    assert {name for name in names if not isinstance(getattr(affnorm_zoo, name), ModuleType)} == {
        "AffineLikeLinear", "L2Norm", "L2Norm2d", "NormLikeLinear", "NormalizerSpec", "PatchNormConv2d",
        "PatchNormConv2dSame", "Scale", "affine_like_linear", "bind", "get_normalizer", "l2_norm", "list_normalizers",
        "norm_layer", "norm_like_linear", "patch_norm_conv2d", "register_normalizer", "slot_norms",
    }  # fmt: skip
