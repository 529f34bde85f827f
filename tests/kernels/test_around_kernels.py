"""The passes where kernels run them: what a kernel lacks is done around it."""

import pytest
import torch
from twins import DEVICE, assert_twin, image

from affnorm_zoo.ops import elementwise, passes

pytest.importorskip("affnorm_zoo.kernels.elementwise", reason="Triton is for Linux", exc_type=ImportError)

SHAPE = (2, 12, 5, 7)


@pytest.fixture(autouse=True)
def by_kernels(monkeypatch):
    monkeypatch.setattr(passes, "use_kernels", lambda _: True)


@pytest.fixture
def factor():
    return torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(2)).to(DEVICE) + 0.5


def double(*tensors):
    return (t.double() for t in tensors)


def test_square_sums():
    x = image(SHAPE, torch.float32, "NHWC", 0)
    assert_twin([passes.square_sum(x, 2)], [elementwise.square_sum(x, 2)], [elementwise.square_sum(x.double(), 2)])


def test_outputs_with_a_shortcut(factor):
    y, shortcut = (image(SHAPE, torch.float32, "NHWC", seed) for seed in (0, 1))

    def apply(module, y, factor, shortcut):
        return [module.scale_output(y.clone(), factor, None, None, "none", shortcut=shortcut)]

    truth = apply(elementwise, *double(y, factor, shortcut))
    assert_twin(apply(passes, y, factor, shortcut), apply(elementwise, y, factor, shortcut), truth)


@pytest.mark.parametrize("with_shortcut", [True, False])
def test_cotangents_with_and_without_a_shortcut(factor, with_shortcut):
    dz, output, shortcut = (image(SHAPE, torch.float32, "NHWC", seed) for seed in (0, 1, 3))

    def apply(module, dz, factor, output, shortcut):
        more = {"shortcut": shortcut} if with_shortcut else {}
        return module.scale_cotangent(dz, factor, output=output, **more)

    truth = apply(elementwise, *double(dz, factor, output, shortcut))
    arguments = (dz, factor, output, shortcut)
    assert_twin(apply(passes, *arguments), apply(elementwise, *arguments), truth)


def test_corrections_at_a_rate(factor):
    dx, x = (image(SHAPE, torch.float32, "NHWC", seed) for seed in (0, 1))

    def apply(module, dx, x, factor):
        plain, pointwise = dx.clone(), dx.clone()
        module.correct(plain, x, factor, 0.3)
        module.correct_pointwise(pointwise, x, factor, factor, 0.3)
        return plain, pointwise

    truth = apply(elementwise, *double(dx, x, factor))
    # sums of twelve products, in another order
    slack = 1e-5
    assert_twin(apply(passes, dx, x, factor), apply(elementwise, dx, x, factor), truth, slack)
