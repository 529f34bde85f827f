"""Real steps on nets whose activations are followed by hand."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import affnorm_zoo
from affnorm_zoo.diagnostics import measure_step

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.03),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.03, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.03, weight_decay=0.1),
}


def problem(*layers):
    torch.manual_seed(0)
    model = nn.Sequential(*layers).double()
    return model, 2 * torch.randn(7, 5, dtype=torch.float64), torch.arange(7) % 3


def follow(model, optimizer, x, labels):
    """Δz of both linear layers with all moving, and their -ηg, one step taken on a copy."""
    first, second = copy.deepcopy((model, optimizer)), copy.deepcopy(model)
    model, optimizer = first
    a = model[0](x)
    z = model[2](model[1](a))
    a.retain_grad(), z.retain_grad()
    optimizer.zero_grad()
    F.cross_entropy(z, labels).backward()
    optimizer.step()
    with torch.no_grad():
        held = [model[0](x) - a, model[2](second[1](second[0](x))) - z]
        moving = [held[0], model[2](model[1](model[0](x))) - z]
    return held, moving, [-0.03 * a.grad, -0.03 * z.grad]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("layer", [nn.Linear, affnorm_zoo.AffineLikeLinear, affnorm_zoo.NormLikeLinear])
def test_a_step_moves_as_it_does_by_hand(name, layer):
    model, x, labels = problem(layer(5, 4), nn.Tanh(), layer(4, 3))
    optimizer = OPTIMIZERS[name](model.parameters())
    for _ in range(2):  # so that there are momenta
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
    held, moving, ideal = follow(model, optimizer, x, labels)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    for index, found in enumerate(measure_step(model, optimizer, x, labels, F.cross_entropy)):
        lengths = ideal[index].norm(dim=1)
        for moved, cosine, length in (
            (held[index], found.cosine, found.length),
            (moving[index], found.moving_cosine, found.moving_length),
        ):
            expected = (moved * ideal[index]).sum(1) / (moved.norm(dim=1) * lengths)
            torch.testing.assert_close(cosine, expected, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(length, moved.norm(dim=1) / lengths, rtol=1e-10, atol=0)
    torch.testing.assert_close((model.state_dict(), optimizer.state_dict()), before, rtol=0, atol=0)


def test_one_samples_step_has_the_papers_factor():
    """Alone in its batch, a sample moves straight, by ‖x‖² + 1 times the ideal; by c² in ours."""
    for layer, factor in ((nn.Linear(5, 3), None), (affnorm_zoo.AffineLikeLinear(5, 3, scale=(2.0, 0.5)), 4.0)):
        model, x, _ = problem(layer)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        (found,) = measure_step(model, optimizer, x[:1], torch.tensor([1]), F.cross_entropy)
        expected = x[:1].square().sum(1) + 1 if factor is None else torch.tensor([factor], dtype=torch.float64)
        torch.testing.assert_close(found.length, expected, rtol=1e-10, atol=0)
        torch.testing.assert_close(found.cosine, torch.ones(1, dtype=torch.float64), rtol=1e-10, atol=0)


def test_noise_and_batch_statistics_are_the_same_on_both_sides():
    """With a rate next to nothing all movement is the step's; another draw of the noise would be far larger."""
    model, x, labels = problem(nn.Linear(5, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Linear(32, 3))
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    before = torch.random.get_rng_state()
    found = measure_step(model, optimizer, x, labels, F.cross_entropy)
    assert max(layer.moving_length.max().item() for layer in found) < 1e3
    assert torch.equal(before, torch.random.get_rng_state())
    assert model[1].num_batches_tracked == 0


def test_layers_that_the_optimiser_does_not_hold_are_left_out():
    model, x, labels = problem(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    assert [layer.name for layer in measure_step(model, optimizer, x, labels, F.cross_entropy)] == ["2"]
    assert measure_step(model, torch.optim.SGD(model.parameters(), lr=0.0), x, labels, F.cross_entropy) == []
