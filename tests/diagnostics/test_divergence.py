"""On layers whose answer is known in closed form."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import affnorm_zoo
from affnorm_zoo.diagnostics import DivergenceMeter, measure_divergence
from affnorm_zoo.diagnostics.meter import LayerMeter


def summary(layer):
    meter = LayerMeter(layer.name, layer.kind)
    meter.add(layer)
    return meter.summary()


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
    assert summary(layer)["cv"] < 1e-10


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
        assert max(summary(layer)["cv"] for layer in ours) < 1e-4  # float32
    plain = [layer for layer in layers if layer.kind in ("Conv2d", "Linear")]
    assert max(summary(layer)["cv"] for layer in plain) > 0.01
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def cosines(rows):
    """Of every sample of the first four with every other, in the order in which they are measured."""
    rows = rows / rows.norm(dim=1, keepdim=True)
    gram = rows @ rows.T
    return torch.stack([gram[i, j] for i in range(4) for j in range(len(rows)) if j != i])


def test_samples_move_each_other_by_their_inner_product():
    x, (layer,) = measure(nn.Linear(5, 3))
    augmented = torch.cat([x, torch.ones(7, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(layer.interference, cosines(augmented), rtol=1e-10, atol=1e-12)
    x, (layer,) = measure(affnorm_zoo.AffineLikeLinear(5, 3, scale=(2.0, 0.5)))
    augmented = torch.cat([x, torch.full((7, 1), 0.5, dtype=torch.float64)], 1)
    torch.testing.assert_close(layer.interference, cosines(augmented), rtol=1e-10, atol=1e-12)
    x, (layer,) = measure(nn.Conv2d(2, 3, 3), shape=(7, 2, 3, 3))
    augmented = torch.cat([x.flatten(1), torch.ones(7, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(layer.interference, cosines(augmented), rtol=1e-10, atol=1e-12)


def test_a_position_is_drawn_in_proportion_to_its_gradient():
    class Weighted(nn.Module):
        """Positions whose gradients are 0, 1 and 3 times the same."""

        def forward(self, z):
            return z @ torch.tensor([0.0, 1.0, 3.0], dtype=z.dtype)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Unflatten(2, (1, 3)), nn.Conv2d(2, 3, 1), nn.Flatten(2), Weighted()).double()
    x = torch.randn(1, 2, 3, dtype=torch.float64)
    own = x[0].square().sum(0) + 1
    found = [measure_divergence(model, x, torch.tensor([1]), summed, seed=s)[0].self_factor.item() for s in range(60)]
    counts = [sum(abs(value - factor) < 1e-9 for value in found) for factor in own.tolist()]
    assert counts[0] == 0
    assert sum(counts) == 60
    assert abs(counts[2] - 54) < 4 * (60 * 0.9 * 0.1) ** 0.5


def test_a_batch_at_a_time_is_the_whole():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, labels = torch.randn(12, 5, dtype=torch.float64), torch.arange(12) % 3
    meter = DivergenceMeter(model, summed)
    for part in (slice(0, 5), slice(5, 12)):
        meter.update(x[part], labels[part])
    whole = measure_divergence(model, x, labels, summed)
    assert meter.num_images == 12
    for row, layer in zip(meter.summary(), whole, strict=True):
        own = row["self_factor"]
        assert own["n"] == 12
        assert own["mean"] == pytest.approx(layer.self_factor.mean().item(), rel=1e-12)
        assert own["std"] == pytest.approx(layer.self_factor.std(correction=0).item(), rel=1e-9)
        assert row["cv"] == pytest.approx(own["std"] / own["mean"], rel=1e-12)


def test_under_autocast_the_factor_is_that_of_the_roundings():
    torch.manual_seed(0)
    model, x, labels = nn.Sequential(nn.Linear(64, 8)), torch.randn(6, 64), torch.arange(6) % 3
    (exact,) = measure_divergence(model, x, labels, summed)
    with torch.autocast("cpu", torch.bfloat16):
        (rounded,) = measure_divergence(model, x, labels, summed)
    # the model's own products are rounded to 8 bits, the measurement's are not, and x is not in the first layer
    torch.testing.assert_close(rounded.self_factor, exact.self_factor, rtol=1e-5, atol=0)


def test_a_compiled_model_is_measured_through_its_wrapper_or_refused():
    torch.manual_seed(0)
    model, x, labels = nn.Sequential(nn.Linear(5, 3)), torch.randn(4, 5), torch.arange(4) % 3
    (plain,) = measure_divergence(model, x, labels, summed)
    (wrapped,) = measure_divergence(torch.compile(model), x, labels, summed)
    assert torch.equal(plain.factor, wrapped.factor)
    model[0].compile()
    with pytest.raises(ValueError, match="0 is compiled in place"):
        measure_divergence(model, x, labels, summed)


def test_a_failing_loss_leaves_no_hook():
    model = nn.Sequential(nn.Linear(5, 3)).train()

    def broken(logits, labels):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        measure_divergence(model, torch.randn(4, 5), torch.arange(4) % 3, broken)
    assert not model[0]._forward_hooks
    assert model.training
