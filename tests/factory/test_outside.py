"""A normaliser that another package brings: a learnable κ, for convolutions and linear layers, no activation taken."""

import copy
import math
import pickle

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from affnorm_zoo import NormalizerSpec, bind, list_normalizers, norm_layer, register_normalizer, registry
from affnorm_zoo.factory import bound_layers, init_bound_weights
from affnorm_zoo.layers import BoundLayer
from affnorm_zoo.training.rates import divide_bias_rates


class LearnedKappa(BoundLayer):
    """c (Wx + κ b) / √(‖x‖² + κ²) with κ = √n e^log_kappa."""

    def _make(self, weight_shape, scale, bias, device, dtype):
        self._set_scale(scale, math.prod(weight_shape[1:]))
        self.weight = nn.Parameter(torch.empty(weight_shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(weight_shape[0], device=device, dtype=dtype)) if bias else None
        self.log_kappa = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.normal_(self.weight, std=1 / self.c)
        nn.init.constant_(self.log_kappa, 0.25)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def damp(self, factor):
        self.weight.mul_(factor)

    def inner_kappa(self):
        return None if self.bias is None else self.kappa * self.log_kappa.exp().item()

    def quotient(self, product, square):
        kappa = self.kappa * self.log_kappa.exp()
        if self.bias is not None:
            product = product + kappa * self.bias.reshape(self.bias_shape)
        return self.c * product / (square + kappa**2).sqrt()


class LearnedConv2d(LearnedKappa):
    like = nn.Conv2d
    channel_axis = 1
    bias_shape = (-1, 1, 1)

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True,
                 padding_mode="zeros", device=None, dtype=None, *, scale="unit"):  # fmt: skip
        super().__init__()
        assert (groups, padding_mode) == (1, "zeros")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.geometry = (stride, padding, dilation)
        self._make((out_channels, in_channels, *kernel_size), scale, bias, device, dtype)

    def forward(self, x):
        ones = torch.ones_like(self.weight[:1])
        return self.quotient(F.conv2d(x, self.weight, None, *self.geometry),
                             F.conv2d(x.square(), ones, None, *self.geometry))  # fmt: skip


class LearnedLinear(LearnedKappa):
    like = nn.Linear
    channel_axis = -1
    bias_shape = (-1,)

    def __init__(self, in_features, out_features, bias=True, *, scale="unit", device=None, dtype=None):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self._make((out_features, in_features), scale, bias, device, dtype)

    def forward(self, x):
        return self.quotient(F.linear(x, self.weight), x.square().sum(-1, keepdim=True))


@pytest.fixture
def learned():
    spec = NormalizerSpec(
        name="learned", summary="a learned κ", formula="c (Wx + κ b) / √(‖x‖² + κ²)", paper="2401.00001", order=50,
        conv=LearnedConv2d, linear=LearnedLinear,
    )  # fmt: skip
    yield register_normalizer(spec)
    del registry._REGISTRY["learned"]


def build(name):
    options = {}
    if name == "vit":
        options = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3)
    architecture = {"vit": "vit_tiny_patch16_224"}.get(name, name)
    model = timm.create_model(architecture, norm_layer=norm_layer("learned"), num_classes=5, **options)
    return model, bind(model)


ACTIVATIONS = {"resnet18": (nn.ReLU, 17, LearnedConv2d, 20), "vit": (nn.GELU, 2, LearnedLinear, 8)}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.usefixtures("learned")
def test_it_binds_keeps_its_activations_and_trains(name):
    model, _ = build(name)
    activation, count, kind, layers = ACTIVATIONS[name]
    assert sum(type(module) is activation for module in model.modules()) == count
    assert sum(type(module) is kind for module in model.modules()) == layers == len(bound_layers(model))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    divide_bias_rates(optimizer, model)
    kappas = {group["kappa"] for group in optimizer.param_groups if "kappa" in group}
    sizes = {layer.kappa * math.exp(0.25) for layer in bound_layers(model)}
    assert sorted(kappas) == pytest.approx(sorted(sizes))
    F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(not torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.usefixtures("learned")
def test_its_own_parameters_start_as_it_says(name):
    model, _ = build(name)
    for layer in bound_layers(model):
        assert layer.log_kappa.item() == 0.25
        nn.init.zeros_(layer.log_kappa)
    init_bound_weights(model)
    assert all(layer.log_kappa.item() == 0.25 for layer in bound_layers(model))
    end = model.layer1[0].conv2 if name == "resnet18" else model.blocks[0].mlp.fc2
    factor = 0.2 if name == "resnet18" else 0.1
    # the smallest of the two holds 24 · 96 draws: their deviation is off by 1.5 %
    assert end.weight.std().item() * end.c == pytest.approx(factor, rel=0.06)


@pytest.mark.usefixtures("learned")
def test_what_a_plain_layer_lacks_is_drawn_by_the_layer_and_the_rest_adopted():
    conv = nn.Conv2d(3, 4, 3, bias=False)
    state = torch.get_rng_state()
    bound = LearnedConv2d.replacing(conv, scale="rms")
    assert torch.equal(torch.get_rng_state(), state)
    assert bound.weight is conv.weight
    assert bound.log_kappa.item() == 0.25
    assert torch.equal(bound.bias, torch.zeros(4))


@pytest.mark.usefixtures("learned")
def test_it_sorts_where_its_author_says_whatever_its_paper():
    names = list_normalizers()
    assert names[: names.index("learned")] == [n for n in names[:-1] if registry.get_normalizer(n).order < 50]
    assert names[names.index("learned") + 1] == "batchnorm"


def test_a_slot_is_copied_and_pickled_with_its_spec(learned):
    slot = norm_layer("learned", layout="NLC", act_layer="silu")(7)
    for twin in (copy.deepcopy(slot), pickle.loads(pickle.dumps(slot))):
        assert twin.spec is learned
        assert (twin.num_channels, twin.layout, type(twin.act)) == (7, "NLC", nn.SiLU)
