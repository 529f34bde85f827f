"""Against formulas and simulations."""

import math

import numpy as np
import pytest
from scipy import stats

from affnorm_zoo.evidence.statistics import Sample, difference, fit_slope, holm, paired


def test_a_sample_says_mean_and_deviation_of_one_run():
    sample = Sample((0.5, 0.6, 0.7))
    assert sample.mean == pytest.approx(0.6)
    assert sample.std == pytest.approx(0.1)
    assert str(sample) == "60.0 ± 10.0"
    assert math.isnan(Sample((0.5,)).std)


def test_the_interval_holds_the_slope_as_often_as_it_says():
    rng, held, false = np.random.default_rng(0), 0, 0
    x = np.repeat([4.0, 5, 6, 7, 8], 5)
    for _ in range(1000):
        slope = fit_slope(x, 2 * x + rng.normal(size=25))
        held += slope.low <= 2 <= slope.high
        false += fit_slope(x, rng.normal(size=25)).sign != 0
    assert abs(held / 1000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 1000)
    assert abs(false / 1000 - 0.05) < 4 * math.sqrt(0.95 * 0.05 / 1000)
    assert fit_slope(x, -x + 0.01 * rng.normal(size=25)).sign == -1


def test_equal_means_are_told_apart_as_often_as_agreed():
    rng = np.random.default_rng(1)
    pairs = [(Sample(tuple(rng.normal(size=5))), Sample(tuple(3 * rng.normal(size=5)))) for _ in range(1000)]
    found = [difference(*pair) for pair in pairs]
    assert np.mean([estimate.p < 0.05 for estimate in found]) < 0.05 + 4 * math.sqrt(0.95 * 0.05 / 1000)
    assert all((estimate.low <= 0 <= estimate.high) == (estimate.p >= 0.05) for estimate in found)


def test_a_difference_is_that_of_scipy_and_certain_between_constants():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=4), 2 + 3 * rng.normal(size=6)
    ours, theirs = difference(Sample(tuple(a)), Sample(tuple(b))), stats.ttest_ind(a, b, equal_var=False)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert ours.p == pytest.approx(theirs.pvalue)
    assert ours.in_points().low == pytest.approx(100 * ours.low)
    assert difference(Sample((0.1, 0.1)), Sample((0.1, 0.1))).p == 1.0
    certain = difference(Sample((0.1, 0.1)), Sample((0.2, 0.2)))
    assert (certain.low, certain.high, certain.p) == (-0.1, -0.1, 0.0)
    single = difference(Sample((0.3,)), Sample((0.1, 0.2)))
    assert single.value == pytest.approx(0.15)
    assert math.isnan(single.p)
    assert single.sign == 0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_pairs_cancel_what_both_share():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=8)
    a, b = shared + 0.1 + 0.01 * rng.normal(size=8), shared
    assert paired(a, b) < 1e-4
    assert paired(b, a) == pytest.approx(paired(a, b))
    assert paired([0.5, 0.5], [0.5, 0.5]) == 1.0
    rejected = sum(paired(rng.normal(size=5), rng.normal(size=5)) < 0.05 for _ in range(1000))
    assert abs(rejected / 1000 - 0.05) < 4 * math.sqrt(0.95 * 0.05 / 1000)
