"""PatchNorm on centred inputs: what the mean is, when it changes, and what it costs."""

import copy

import pytest
import timm
import torch
from forks import run_forked
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from affnorm_zoo import PatchNormConv2d, PatchNormConv2dSame, convert, patch_norm_conv2d
from affnorm_zoo.errors import UsageError
from affnorm_zoo.evaluation.memory import saved_bytes
from affnorm_zoo.layers import CentredPatchNormConv2d, CentredPatchNormConv2dSame

NUM_BATCHES = 130


def layer(kind=CentredPatchNormConv2d, **options):
    torch.manual_seed(0)
    return kind(4, 6, 3, scale="rms", **{"padding": 1, **options}).double()


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 4, 7, 7, dtype=torch.float64, generator=generator) + 1 for _ in range(count)]


def settle(conv):
    for x in batches(3):
        conv(x)
    assert conv.mean.abs().min() > 0.5
    return conv


def test_the_mean_is_of_the_batches_before_equal_at_first_and_slow_then():
    conv, expected = layer(), torch.zeros(4, dtype=torch.float64)
    for number, x in enumerate(batches(NUM_BATCHES), start=1):
        z = conv(x)
        torch.testing.assert_close(conv.mean, expected, rtol=0, atol=1e-13)
        centred = x - expected.view(-1, 1, 1)
        torch.testing.assert_close(z, patch_norm_conv2d(centred, conv.weight, conv.bias, padding=1, scale="rms"))
        weight = max(1 / number, 0.01)
        expected = (1 - weight) * expected + weight * x.mean((0, 2, 3))


def test_it_is_the_same_function_in_evaluation_and_in_training_and_changes_in_training_only():
    conv, x = settle(layer()), batches(1)[0]
    trained = copy.deepcopy(conv)(x)  # uses next_mean
    conv.mean.copy_(conv.next_mean)
    state = copy.deepcopy(conv.state_dict())
    assert torch.equal(conv.eval()(x), trained)
    assert torch.equal(conv(x[0]), trained[0])
    assert all(torch.equal(value, state[name]) for name, value in conv.state_dict().items())


def test_an_empty_batch_has_no_mean():
    conv = settle(layer())
    state = copy.deepcopy(conv.state_dict())
    assert conv(torch.zeros(0, 4, 7, 7, dtype=torch.float64)).shape == (0, 6, 7, 7)
    assert all(torch.equal(value, state[name]) for name, value in conv.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "plain", "options"),
    [
        (CentredPatchNormConv2d, PatchNormConv2d, dict(padding_mode="circular")),
        (CentredPatchNormConv2d, PatchNormConv2d, dict(padding="same", dilation=2)),
        (CentredPatchNormConv2dSame, PatchNormConv2dSame, dict(stride=2)),
    ],
)
def test_padding_reads_as_the_mean(kind, plain, options):
    conv = settle(layer(kind, **options)).eval()
    twin = layer(plain, **options)
    twin.load_state_dict({name: conv.state_dict()[name] for name in ("weight", "bias")})
    x = batches(1)[0]
    torch.testing.assert_close(conv(x), twin(x - conv.mean.view(-1, 1, 1)), rtol=0, atol=1e-14)
    if options.get("padding_mode") != "circular":
        constant = conv.mean.view(1, -1, 1, 1).expand(1, -1, 7, 7)
        torch.testing.assert_close(conv(constant), (conv.c * conv.bias).view(1, -1, 1, 1).expand_as(conv(constant)))


def test_checkpointing_finds_the_same_mean_and_counts_a_batch_once():
    conv, twin = settle(layer(activation="relu")), settle(layer(activation="relu"))
    x, dz = batches(1)[0].requires_grad_(), torch.randn(2, 6, 7, 7, dtype=torch.float64)
    expected = torch.autograd.grad(conv(x), [x, *conv.parameters()], dz)
    actual = torch.autograd.grad(checkpoint(twin, x, use_reentrant=False), [x, *twin.parameters()], dz)
    assert all(map(torch.equal, actual, expected))
    assert all(torch.equal(value, conv.state_dict()[name]) for name, value in twin.state_dict().items())
    assert twin.num_batches == 4


def test_two_calls_before_a_backward_keep_their_own_means():
    conv = settle(layer())
    first, second = (x.requires_grad_() for x in batches(2, seed=5))
    outputs, means = [], []
    for x in (first, second):
        outputs.append(conv(x))
        means.append(conv.mean.clone())
    dz = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    for x, z, mean in zip((first, second), outputs, means, strict=True):
        centred = (x - mean.view(-1, 1, 1)).detach().requires_grad_()
        expected = patch_norm_conv2d(centred, conv.weight, conv.bias, padding=1, scale="rms")
        expected = torch.autograd.grad(expected, centred, dz)
        torch.testing.assert_close(torch.autograd.grad(z, x, dz), expected)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "regnety_002"])
def test_a_network_saves_what_patchnorm_saves_and_a_few_numbers_per_channel(name):
    x = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    models = [timm.create_model(f"{name}_{norm}").to(memory_format=torch.channels_last)
              for norm in ("patchnorm", "patchnorm_c")]  # fmt: skip
    plain, centred = (saved_bytes(model, x) for model in models)
    channels = sum(module.in_channels for module in models[1].modules() if isinstance(module, CentredPatchNormConv2d))
    assert 0 < centred - plain <= 8 * channels


def test_compiled_it_trains_as_in_eager_mode():
    conv, x = settle(layer(activation="relu")).float(), batches(1)[0].float()
    twin = copy.deepcopy(conv)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        expected, actual = conv(x), compiled(x)
        torch.testing.assert_close(actual, expected)
        expected.square().sum().backward()
        actual.square().sum().backward()
    torch.testing.assert_close(twin.weight.grad, conv.weight.grad)
    torch.testing.assert_close(twin.next_mean, conv.next_mean)
    assert twin.num_batches == conv.num_batches == 5


TWO = """
import os, torch
from torch import distributed
from affnorm_zoo.layers import CentredPatchNormConv2d
distributed.init_process_group("gloo")
rank = distributed.get_rank()
torch.manual_seed(0)
model = torch.nn.parallel.DistributedDataParallel(CentredPatchNormConv2d(3, 4, 3).double())
for step in range(3):
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(10 * rank + step))
    model(x).sum().backward()
own = [[model.module.mean.tolist()], [model.module.weight.grad.flatten().tolist()]]
every = [None, None]
distributed.all_gather_object(every, own)
if rank == 0:
    firsts = [torch.randn(2, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
              for step in range(2)]
    expected = torch.stack([x.mean((0, 2, 3)) for x in firsts]).mean(0)
    assert every[0] == every[1], "the processes differ"
    torch.testing.assert_close(torch.tensor(every[0][0][0], dtype=torch.float64), expected)
distributed.barrier()
distributed.destroy_process_group()
"""


def test_under_ddp_every_process_has_the_first_ones_mean():
    run_forked("-c", TWO, processes=2)


def test_a_grey_image_has_the_average_of_the_means():
    model = timm.create_model("resnet20_cifar_patchnorm_c").train()
    for _ in range(2):
        model(torch.rand(4, 3, 32, 32))
    grey = timm.create_model("resnet20_cifar_patchnorm_c", in_chans=1)
    adapted = grey.conv1.adapt_inputs({name: value.clone() for name, value in model.conv1.state_dict().items()})
    assert adapted["mean"].tolist() == pytest.approx([model.conv1.mean.mean().item()])
    assert adapted["num_batches"] == 2


def test_a_network_trains_and_starts_again():
    model = timm.create_model("resnet20_cifar_patchnorm_c").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, labels = torch.rand(8, 3, 32, 32), torch.arange(8)
    losses = []
    for _ in range(6):
        loss = F.cross_entropy(model(x), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert model.layer3[0].conv2.mean.abs().max() > 0
    model.init_weights()
    assert all(not conv.next_mean.any() for conv in model.modules() if isinstance(conv, CentredPatchNormConv2d))


def test_conversion_is_refused():
    with pytest.raises(UsageError, match=r"'patchnorm_c' changes its map while it trains.* use 'patchnorm'"):
        convert(timm.create_model("resnet18"), "patchnorm_c", images=torch.randn(8, 3, 32, 32))
