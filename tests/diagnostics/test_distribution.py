"""A stream's statistics are those of all its values at once."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from affnorm_zoo.diagnostics import Distribution

sizes = st.floats(-12, 12).map(lambda power: 10**power)
values = st.lists(st.one_of(st.just(0.0), sizes, sizes.map(lambda size: -size)), min_size=1, max_size=200)


@given(values, st.integers(0, 200))
def test_in_two_parts_it_is_the_whole(numbers, cut):
    x = torch.tensor(numbers, dtype=torch.float64)
    stream = Distribution()
    for part in (x[:cut], x[cut:]):
        stream.add(part)
    largest = x.abs().max().item()
    assert stream.count == len(x)
    assert stream.mean == pytest.approx(x.mean().item(), abs=1e-12 * largest)
    assert stream.std == pytest.approx(x.std(correction=0).item(), abs=1e-7 * largest)
    assert (stream.low, stream.high) == (x.min().item(), x.max().item())
    for fraction in (0.01, 0.5, 0.99):
        exact = x.sort().values[max(math.ceil(fraction * len(x)), 1) - 1].item()
        assert stream.quantile(fraction) == pytest.approx(exact, rel=0.003, abs=1e-20)


def test_its_memory_does_not_grow():
    stream = Distribution()
    size = stream._histogram.numel()
    for seed in range(50):
        stream.add(torch.randn(1000, generator=torch.Generator().manual_seed(seed)))
    assert stream._histogram.numel() == size
    assert not any(isinstance(value, list) for value in vars(stream).values())


def test_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match="finite"):
        Distribution().add(torch.tensor([1.0, math.nan]))


def test_without_values_nothing_is_claimed():
    stream = Distribution()
    stream.add(torch.empty(0))
    assert stream.count == 0
    assert math.isnan(stream.std)
    assert math.isnan(stream.quantile(0.5))
