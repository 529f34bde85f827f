"""Structured pruning by torch-pruning: weight, bias and gain lose the same channels, and every layer its share."""

import pytest
import timm
import torch
from clients.rows import client

from affnorm_zoo.layers import PatchNormConv2d


@client("torch-pruning", "groups of channels with their gains, `affnorm_zoo.pruning.pruners()`")
@pytest.mark.parametrize("name", ["resnet20_cifar_patchnorm_ws", "resnet20_cifar_patchnorm_l2", "resnet18_patchnorm"])
def test_torch_pruning(name):
    import torch_pruning

    from affnorm_zoo.pruning import pruners, weighing

    model, x = timm.create_model(name, num_classes=5), torch.randn(2, 3, 32, 32)
    graph = torch_pruning.DependencyGraph().build_dependency(model, x, customized_pruners=pruners())
    layer = model.layer2[0].conv1
    kept = [i for i in range(layer.out_channels) if i not in (0, 3)]
    weight, gain, bias = (None if p is None else p.detach().clone() for p in (layer.weight, layer.gain, layer.bias))
    graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, idxs=[0, 3]).prune()
    assert torch.equal(layer.weight, weight[kept])
    assert torch.equal(layer.bias, bias[kept])
    assert (layer.gain is None) == (gain is None)
    assert gain is None or torch.equal(layer.gain, gain[kept])
    assert model.layer2[0].conv2.weight.shape[1] == len(kept)
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    importance = weighing(torch_pruning.importance.MagnitudeImportance())
    smaller = torch_pruning.pruner.MetaPruner(
        model, x, importance=importance, pruning_ratio=0.25,
        customized_pruners=pruners(), root_module_types=[torch.nn.Linear, *pruners()], ignored_layers=[model.fc],
    )  # fmt: skip
    widths = {key: module.out_channels for key, module in model.named_modules() if isinstance(module, PatchNormConv2d)}
    smaller.step()
    assert all(model.get_submodule(key).out_channels < width for key, width in widths.items())
    assert model(x).shape == (2, 5)


@client("torch-pruning", "vision transformers, `forward_fn` over all tokens and `affnorm_zoo.pruning.weighing`")
@pytest.mark.parametrize("name", ["vit_nano_patch4_32_affinelike", "vit_nano_patch4_32_normlike"])
def test_torch_pruning_of_a_transformer(name):
    import torch_pruning

    from affnorm_zoo.pruning import pruners, weighing

    model, plain = (timm.create_model(kind, depth=2, num_classes=5) for kind in (name, "vit_nano_patch4_32_layernorm"))
    x = torch.randn(2, 3, 32, 32)
    for network in (model, plain):  # which loses the same share
        attentions = [block.attn for block in network.blocks]
        for attention in attentions:
            attention.fused_attn = False
        pruner = torch_pruning.pruner.MetaPruner(
            network, x, forward_fn=lambda model, x: model.head(model.forward_features(x)),
            importance=weighing(torch_pruning.importance.MagnitudeImportance()), pruning_ratio=0.25,
            customized_pruners=pruners(), root_module_types=[torch.nn.Linear, *pruners()],
            ignored_layers=[network.head], num_heads={a.qkv: a.num_heads for a in attentions},
        )  # fmt: skip
        pruner.step()
        for attention in attentions:
            attention.num_heads = pruner.num_heads[attention.qkv]
            attention.attn_dim = attention.qkv.out_features // 3
            attention.head_dim = attention.attn_dim // attention.num_heads
        assert network(x).shape == (2, 5)
    for key, layer in plain.named_modules():
        if isinstance(layer, torch.nn.Linear):
            assert model.get_submodule(key).weight.shape == layer.weight.shape, key
    model(x).square().sum().backward()
    assert all(p.grad.shape == p.shape for p in model.parameters())
