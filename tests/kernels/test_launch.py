"""Where kernels are launched: one place, on the device of their tensors, with tiles that fit."""

import ast
from pathlib import Path

import pytest
import torch
from twins import DEVICE, image

from affnorm_zoo.kernels import _launch

PACKAGE = Path(_launch.__file__).parent


def test_kernels_are_launched_in_one_place_only():
    launches = [
        (path.name, node.lineno)
        for path in PACKAGE.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
    ]
    assert [name for name, _ in launches] == ["_launch.py"]


def test_a_launch_makes_the_device_of_its_tensors_current(monkeypatch):
    events = []

    class Guard:
        def __init__(self, tensor):
            self.tensor = tensor

        def __enter__(self):
            events.append(("enter", self.tensor))

        def __exit__(self, *_):
            events.append(("exit", self.tensor))

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **constants: events.append((grid, args, constants))

    monkeypatch.setattr(torch.cuda, "device_of", Guard)
    x = torch.zeros(1)
    _launch.launch(Kernel(), (3,), x, 5, FLAG=True)
    assert events == [("enter", x), ((3,), (x, 5), {"FLAG": True}), ("exit", x)]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_layer_runs_on_a_device_that_is_not_the_current_one():
    from affnorm_zoo import PatchNormConv2d

    layer = PatchNormConv2d(8, 16, 3, activation="relu").to("cuda:1")
    x = torch.randn(2, 8, 9, 9)
    with torch.cuda.device(0):
        z = layer(x.to("cuda:1"))
    torch.testing.assert_close(z.cpu(), layer.cpu()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("order", ["NCHW", "NHWC", "strided"])
@pytest.mark.parametrize("shape", [(2, 12, 5, 7), (1, 6, 1, 1), (3, 78, 3, 2), (2, 6000, 4, 4)], ids=str)
def test_tiles_cover_every_element_and_hold_no_more_than_they_may(shape, order, groups):
    layout = _launch.layout_of(image(shape, torch.float32, order, 0))
    for most in (_launch.SUMMED_CHANNELS, _launch.MOST_CHANNELS, _launch.TILE):
        tile = _launch.tile_of(layout, groups, most)
        assert 1 <= tile.pixels * tile.groups * tile.channels <= _launch.TILE
        assert all(side == _launch.next_power_of_2(side) for side in tile)
        assert layout.blocks(tile) * tile.pixels >= layout.images * layout.pixels
    assert layout.images * layout.pixels * layout.channels == torch.Size(shape).numel()


def test_the_order_in_memory_is_the_tensors_own_where_it_is_dense():
    for order in ("NCHW", "NHWC"):
        x = image((2, 12, 5, 7), torch.float32, order, 0).to(DEVICE)
        layout = _launch.layout_of(x)
        assert layout.channels_last == (order == "NHWC")
        assert layout.dense(x) is x
    rows = torch.zeros(7, 12)[:, :, None, None]
    assert _launch.layout_of(rows) == (True, 1, 7, 12)
    assert _launch.layout_of(rows).dense(rows) is rows
