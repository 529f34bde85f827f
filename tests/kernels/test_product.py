"""The matrix product with the normaliser in it, and the choice between it and the library's."""

import types

import pytest
import torch
from definitions import max_error
from twins import DEVICE, assert_twin, image

from affnorm_zoo.functional.patch_norm import patch_norm_map
from affnorm_zoo.kernels._launch import PRODUCT_TILES, ProductTile
from affnorm_zoo.layers.affine_like import AffineLikeLinear
from affnorm_zoo.layers.norm_like import NormLikeLinear
from affnorm_zoo.layers.patch_norm import PatchNormConv2d
from affnorm_zoo.ops import linear, patch_norm, product

kernels = pytest.importorskip("affnorm_zoo.kernels.product", reason="Triton is for Linux", exc_type=ImportError)

# Triton's interpreter takes the bits of a bfloat16 for an integer in a matrix product
DTYPES = [torch.float16, torch.bfloat16] if DEVICE == "cuda" else [torch.float16]
SMALL = ProductTile(16, 16, 16, num_warps=4, num_stages=2)
C, KAPPA = 3.0, 2.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "strided"])
@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "silu"])
@pytest.mark.parametrize(("norm_like", "with_bias"), [(False, True), (False, False), (True, True), (True, False)])
@pytest.mark.parametrize("shape", [(2, 12, 5, 7), (1, 6, 1, 1), (3, 78, 3, 2)], ids=str)
def test_images(shape, norm_like, with_bias, activation, layout, dtype):
    x = image(shape, dtype, layout, 0)
    x[0, :, 0, 0] = 0  # the length that norm_like does not divide by
    weight = image((21, shape[1], 1, 1), dtype, "NCHW", 1) / shape[1] ** 0.5
    bias = torch.randn(21).to(DEVICE, dtype) if with_bias else None

    def reference(cast):
        wide = [None if t is None else cast(t) for t in (x, weight, bias)]
        z = patch_norm_map(*wide, (1, 1), (0, 0), (1, 1), 1, C, KAPPA, norm_like, activation)
        what = patch_norm.PatchMap((1, 1), (0, 0), (1, 1), 1, C, KAPPA, norm_like, activation)
        return z, patch_norm._forward(*wide, what, False)[1]

    ours = kernels.normalized_product(x, weight.flatten(1), bias, C, KAPPA, norm_like, activation, SMALL)
    assert_twin(ours, reference(lambda t: t), reference(lambda t: t.double()))
    assert (ours[0].stride(1) == 1) == (x.stride(1) == 1)


@pytest.mark.parametrize("tile", PRODUCT_TILES, ids=str)
def test_rows(tile):
    x, weight = (image((n, 70, 1, 1), torch.float16, "NCHW", n).flatten(1) for n in (150, 131))
    bias = torch.randn(131).to(x)
    what = linear.LinearMap(C, KAPPA, False, "none")
    ours = kernels.normalized_product(x, weight.t().contiguous().t(), bias, C, KAPPA, False, "none", tile)
    theirs = linear._forward(x, weight, bias, what)
    assert_twin(ours, theirs, linear._forward(x.double(), weight.double(), bias.double(), what))


@pytest.fixture
def fused(monkeypatch):
    """A GPU on which any candidate may be the fastest: the index that is to win, and the calls that were timed."""
    state = types.SimpleNamespace(winner=1, timed=[])
    monkeypatch.setattr(product, "_fastest", {})
    for module in (linear, patch_norm):
        monkeypatch.setattr(module, "may_fuse", lambda x: x.dtype == torch.float16)
    if DEVICE == "cpu":
        room = max(tile.shared_bytes for tile in PRODUCT_TILES)
        gpu = types.SimpleNamespace(major=8, shared_memory_per_block_optin=room)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)

    def seconds(call):
        call()
        state.timed.append(call)
        return float((len(state.timed) - 1) % (1 + len(PRODUCT_TILES)) != state.winner)

    monkeypatch.setattr(product, "seconds", seconds)
    return state


LAYERS = {
    "affine_like": (lambda: AffineLikeLinear(20, 9, scale="rms"), (3, 5, 20)),
    "affine_like-gelu": (lambda: AffineLikeLinear(20, 9, scale="rms", input_activation="gelu"), (3, 5, 20)),
    "norm_like": (lambda: NormLikeLinear(20, 9, scale="rms"), (7, 20)),
    "patch_norm": (lambda: PatchNormConv2d(20, 9, 1, scale="rms"), (2, 20, 3, 5)),
    "patch_norm-relu": (lambda: PatchNormConv2d(20, 9, 1, scale="rms", activation="relu"), (2, 20, 3, 5)),
    "patch_norm-norm_like": (lambda: PatchNormConv2d(20, 9, 1, scale="rms", variant="norm_like"), (2, 20, 3, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_have_the_same_values_and_gradients_on_either_way(fused, name):
    build, shape = LAYERS[name]
    layer = build().to(DEVICE)
    torch.nn.init.normal_(layer.bias)
    x, seed = torch.randn(shape, device=DEVICE), None

    def run(dtype):
        nonlocal seed
        network = layer.to(dtype)
        inputs = x.to(torch.float16).to(dtype).requires_grad_()
        z = network(inputs)
        seed = torch.randn_like(z, dtype=torch.float32) if seed is None else seed
        return z.detach(), *torch.autograd.grad(z, [inputs, *network.parameters()], seed.to(torch.float16).to(dtype))

    layer.half()
    results = {}
    for winner in (0, 1):
        product._fastest.clear()
        fused.winner = winner
        results[winner] = run(torch.float16)
        assert list(product._fastest.values()) == [(None, *PRODUCT_TILES)[winner]]
    for ours, theirs, truth in zip(results[1], results[0], run(torch.float64), strict=True):
        ulp = torch.finfo(torch.float16).eps * truth.abs().max().item()
        assert max_error(ours, truth) <= 2 * max_error(theirs, truth) + ulp


def test_a_shape_is_measured_once_and_an_uneven_batch_not_again(fused):
    layer = AffineLikeLinear(20, 9).to(DEVICE, torch.float16)
    candidates = 1 + len(PRODUCT_TILES)
    for rows, count in ((16, candidates), (16, candidates), (11, candidates), (17, 2 * candidates)):
        layer(torch.randn(rows, 20, device=DEVICE, dtype=torch.float16))
        assert len(fused.timed) == count


def test_candidates_are_built_for_a_new_shape_only(fused, monkeypatch):
    asked = []
    right = product.fitting_tiles
    monkeypatch.setattr(product, "fitting_tiles", lambda device: asked.append(device) or right(device))
    layer = AffineLikeLinear(20, 9).to(DEVICE, torch.float16)
    for rows, count in ((16, 1), (16, 1), (17, 2)):
        layer(torch.randn(rows, 20, device=DEVICE, dtype=torch.float16))
        assert len(asked) == count


def test_what_is_no_single_product_is_not_measured(fused):
    x = torch.randn(2, 4, 6, 6, device=DEVICE, dtype=torch.float16)
    for arguments in (dict(kernel_size=3), dict(kernel_size=1, stride=2), dict(kernel_size=1, padding=1),
                      dict(kernel_size=1, groups=2)):  # fmt: skip
        PatchNormConv2d(4, 6, **arguments).to(DEVICE, torch.float16)(x)
    assert not fused.timed


def test_tiles_that_the_gpu_has_no_room_for_are_left_out(monkeypatch):
    sizes = sorted(tile.shared_bytes for tile in PRODUCT_TILES)
    every = len(sizes)
    for room, major, count in ((sizes[0] - 1, 8, 0), (sizes[0], 8, 1), (sizes[-1], 9, every), (sizes[-1], 7, 0)):
        gpu = types.SimpleNamespace(major=major, shared_memory_per_block_optin=room)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, gpu=gpu: gpu)
        assert len(product.fitting_tiles(torch.device("cuda"))) == count


@pytest.mark.parametrize("benchmark", [True, False])
def test_measuring_is_asked_for_as_cudnn_s_is(monkeypatch, benchmark):
    monkeypatch.setattr(product.passes, "use_kernels", lambda x: True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", benchmark)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert product.may_fuse(torch.zeros(1, dtype=torch.bfloat16)) is benchmark
    assert not product.may_fuse(torch.zeros(1))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not product.may_fuse(torch.zeros(1, dtype=torch.bfloat16))
