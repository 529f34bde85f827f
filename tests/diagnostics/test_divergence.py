"""On layers whose answer is known in closed form."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import affnorm_zoo
from affnorm_zoo.diagnostics import measure_divergence


def summed(logits, labels):
    return F.cross_entropy(logits.flatten(2).mean(2) if logits.ndim > 2 else logits, labels, reduction="sum")


def measure(*layers, shape=(7, 5)):
    torch.manual_seed(0)
    model = nn.Sequential(*layers).double()
    x = 3 * torch.randn(*shape, dtype=torch.float64)
    return x, measure_divergence(model, x, torch.arange(shape[0]) % 3, summed)


def test_an_affine_layer_moves_by_the_papers_factor():
    x, (layer,) = measure(nn.Linear(5, 3))
    expected = x.square().sum(1) + 1
    for found in (layer.self_factor, layer.factor):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(layer.cosine, torch.ones(7, dtype=torch.float64), rtol=1e-10, atol=0)


@pytest.mark.parametrize(("scale", "c", "kappa"), [("unit", 1, 1), ("rms", 5**0.5, 5**0.5), ((2.0, 0.5), 2, 0.5)])
def test_ours_move_all_samples_alike(scale, c, kappa):
    _, (layer,) = measure(affnorm_zoo.AffineLikeLinear(5, 3, scale=scale))
    torch.testing.assert_close(layer.factor, torch.full((7,), float(c**2), dtype=torch.float64), rtol=1e-10, atol=0)
    _, (layer,) = measure(affnorm_zoo.NormLikeLinear(5, 3, scale=scale))
    torch.testing.assert_close(layer.factor, torch.full((7,), c**2 + 1.0, dtype=torch.float64), rtol=1e-10, atol=0)
    assert layer.summary()["self_factor_cv"] < 1e-10


def test_a_convolution_has_a_self_term_and_a_cross_term():
    x, (layer,) = measure(nn.Conv2d(2, 3, 3), shape=(4, 2, 3, 3))  # one position: no cross term
    torch.testing.assert_close(layer.factor, x.square().sum((1, 2, 3)) + 1, rtol=1e-10, atol=0)
    x, (layer,) = measure(nn.Conv2d(2, 3, 1), shape=(4, 2, 6, 6))
    # the loss averages the positions, whose gradients are then equal: Δz_p = Σ_q (⟨x_p, x_q⟩ + 1) g
    rows = x.flatten(2)
    expected = torch.einsum("ncp,ncq->n", rows, rows) / 36 + 36
    torch.testing.assert_close(layer.factor, expected, rtol=1e-10, atol=0)
    own = rows.square().sum(1) + 1
    assert (own - layer.self_factor[:, None]).abs().amin(1).max() < 1e-9  # that of one of the positions


@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu"])
def test_patches_move_by_themselves_alike(activation):
    conv = affnorm_zoo.PatchNormConv2d(2, 3, 3, padding=1, scale=(2.0, 0.5), activation=activation)
    _, (layer,) = measure(conv, shape=(4, 2, 6, 6))
    torch.testing.assert_close(layer.self_factor, torch.full((4,), 4.0, dtype=torch.float64), rtol=1e-10, atol=0)
    assert conv.activation == activation


def test_a_real_step_moves_a_layer_as_measured():
    x, (layer,) = measure(nn.Linear(5, 3))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3)).double()
    for i in range(7):
        sample, label = x[i : i + 1], torch.tensor([i % 3])
        before = model(sample).detach()
        logits = model(sample)
        logits.retain_grad()
        model.zero_grad()
        summed(logits, label).backward()
        with torch.no_grad():
            stepped = {name: p - 1e-3 * p.grad for name, p in model.named_parameters()}
            moved = torch.func.functional_call(model, stepped, (sample,)) - before
        factor = (moved * -logits.grad).sum() / (1e-3 * logits.grad.square().sum())
        assert factor.item() == pytest.approx(layer.factor[i].item(), rel=1e-9)


@pytest.mark.parametrize(
    "name", ["resnet20_cifar_patchnorm", "vit_nano_patch4_32_affinelike", "resnet20_cifar_batchnorm"]
)
def test_whole_models_are_measured_and_left_as_they_were(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    layers = measure_divergence(model, images, labels, summed)
    ours = [layer for layer in layers if layer.kind in ("PatchNormConv2d", "AffineLikeLinear")]
    if "batchnorm" not in name:
        assert len(ours) >= 19
        assert max(layer.summary()["self_factor_cv"] for layer in ours) < 1e-4  # float32
    plain = [layer for layer in layers if layer.kind in ("Conv2d", "Linear")]
    assert max(layer.summary()["self_factor_cv"] for layer in plain) > 0.01
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
