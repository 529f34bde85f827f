"""A bound residual block whose end is one op computes what timm's block computes, and lets everybody look in."""

import copy
import pickle

import pytest
import torch
from timm.models._features_fx import FeatureGraphNet
from timm.models.resnet import BasicBlock, Bottleneck, ResNet

import affnorm_zoo
from affnorm_zoo.evaluation.memory import saved_bytes
from affnorm_zoo.factory import init_bound_weights
from affnorm_zoo.ops import patch_norm as op

SMALL = dict(layers=(2, 1, 1, 1), channels=(4, 6, 8, 8), stem_width=4, num_classes=5)
NETWORKS = {
    "basic": dict(block=BasicBlock),
    "bottleneck": dict(block=Bottleneck),
    "attention": dict(block=Bottleneck, block_args=dict(attn_layer="se")),
    "drop-path": dict(block=BasicBlock, drop_path_rate=0.4),
}


def network(options, normalizer="patchnorm", absorb=True, dtype=torch.float64):
    torch.manual_seed(0)
    model = ResNet(**(SMALL | options), norm_layer=affnorm_zoo.norm_layer(normalizer))
    affnorm_zoo.bind(model, absorb=absorb)
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "gain")):
            torch.nn.init.normal_(parameter)
    return model.to(dtype).train()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def run(model, images):
    """Outputs and gradients, for the same random choices of drop path."""
    torch.manual_seed(2)
    y = model(images)
    cotangent = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).to(y)
    return y, torch.autograd.grad(y, list(model.parameters()), cotangent)


@pytest.fixture
def convolved_again(monkeypatch):
    """The kernels of what is convolved again in a backward."""
    kernels = []
    again = op.convolve_again

    def counted(x, kernel, *others):
        kernels.append(tuple(kernel.shape))
        return again(x, kernel, *others)

    monkeypatch.setattr(op, "convolve_again", counted)
    return kernels


@pytest.mark.parametrize("normalizer", ["patchnorm", "patchnorm_l2", "patchnorm_ws"])
@pytest.mark.parametrize("name", NETWORKS)
def test_joined_blocks_have_the_outputs_and_gradients_of_timms(name, normalizer, images):
    joined, apart = (network(NETWORKS[name], normalizer, absorb) for absorb in (True, False))
    assert type(apart.layer1[0]) is NETWORKS[name]["block"]
    assert type(joined.layer1[0]) is not type(apart.layer1[0])
    assert type(joined.layer1[0]).__name__ == type(apart.layer1[0]).__name__
    (y, actual), (other, expected) = run(joined, images), run(apart, images)
    torch.testing.assert_close(y, other, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9 * max(g.abs().max().item() for g in expected))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_only_half_precision_convolves_again(dtype, images, convolved_again):
    model = network(NETWORKS["basic"], dtype=dtype)
    blocks = [module for module in model.modules() if isinstance(module, BasicBlock)]
    assert {block.downsample is None for block in blocks} == {True, False}
    run(model, images.to(dtype))
    assert len(convolved_again) == (len(blocks) if dtype == torch.bfloat16 else 0)


@pytest.mark.parametrize("part", ["conv2", "bn2", "act2"])
def test_a_hook_sees_what_it_would_see_in_timms_block(part, images):
    seen = []
    for absorb in (True, False):
        model = network(NETWORKS["basic"], absorb=absorb)
        getattr(model.layer1[1], part).register_forward_hook(lambda *call: seen.append(call[2].clone()))
        model(images)
    torch.testing.assert_close(*seen)


def test_a_joined_block_saves_no_more_than_timms_but_for_downsampling_outputs(images):
    small = images.float()
    for name in ("basic", "bottleneck"):
        joined, apart = (network(NETWORKS[name], absorb=absorb, dtype=torch.float32) for absorb in (True, False))
        join = saved_bytes(joined, small)
        shortcuts = []
        for module in joined.modules():
            if hasattr(module, "forward_apart"):
                (module.bn3 if name == "bottleneck" else module.bn2).register_forward_hook(lambda *_: None)
                if name == "basic" and module.downsample is not None:
                    module.downsample.register_forward_hook(lambda *call, sizes=shortcuts: sizes.append(call[2].nbytes))
        assert join <= saved_bytes(joined, small) + sum(shortcuts)
        assert saved_bytes(joined, small) <= saved_bytes(apart, small)


def test_copies_tracers_and_compilers_compute_the_same(images):
    model = network(NETWORKS["basic"]).eval()
    expected = model(images)
    twins = [
        copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.jit.script(model),
        torch.export.export(model, (images,)).module(), torch.compile(model, fullgraph=True, backend="aot_eager"),
    ]  # fmt: skip
    for twin in twins:
        torch.testing.assert_close(twin(images), expected)
    features = FeatureGraphNet(model, out_indices=(1, 2))
    hooked = {}
    model.layer1.register_forward_hook(lambda *call: hooked.update(out=call[2]))
    model(images)
    torch.testing.assert_close(features(images)[0], hooked["out"])


def test_initialisation_still_finds_the_ends_of_branches():
    large, small = (network(NETWORKS["basic"]) for _ in range(2))
    for model, damp in ((large, False), (small, True)):
        torch.manual_seed(4)
        init_bound_weights(model, damp_branches=damp)
    torch.testing.assert_close(small.layer1[0].conv2.weight, 0.2 * large.layer1[0].conv2.weight)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_a_forward_that_was_put_on_a_layer_runs(block, images):
    """As accelerate does to move weights in time."""
    model = network(NETWORKS[block])
    expected = model(images)
    calls = []
    for module in model.modules():
        if isinstance(module, (BasicBlock, Bottleneck)):
            conv = module.conv2 if block == "basic" else module.conv3
            conv.forward = lambda x, plain=conv.forward: calls.append(x.shape) or plain(x)
    torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-9)
    assert len(calls) == 5
