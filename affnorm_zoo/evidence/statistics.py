"""The statistics that the claims need."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # loads scipy.stats, which takes a second, only on first use


@dataclass(frozen=True)
class Sample:
    """The accuracies of one cell's seeds, in [0, 1]."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        """The standard deviation of one run, estimated from the seeds; nan for a single seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan

    def __str__(self) -> str:
        deviation = f" ± {100 * self.std:.1f}" if len(self.values) > 1 else ""
        return f"{100 * self.mean:.1f}{deviation}"


@dataclass(frozen=True)
class Estimate:
    """A slope or a difference, its 95 % interval and the p value of zero."""

    value: float
    low: float
    high: float
    p: float

    @property
    def sign(self) -> int:
        """1 or -1 if the estimate differs from zero at the 5 % level, otherwise 0."""
        return (1 if self.value > 0 else -1) if self.p < 0.05 else 0

    def in_points(self) -> "Estimate":
        """An estimate from accuracies in [0, 1], in points of per cent."""
        return Estimate(100 * self.value, 100 * self.low, 100 * self.high, self.p)


def fit_slope(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """Ordinary least squares of y on x, with Student's t for the interval."""
    fit = scipy.stats.linregress(x, y)
    margin = scipy.stats.t.ppf(0.975, len(x) - 2) * fit.stderr
    return Estimate(float(fit.slope), float(fit.slope - margin), float(fit.slope + margin), float(fit.pvalue))


def difference(a: Sample, b: Sample) -> Estimate:
    """The difference of the means, a - b, by Welch's t test.

    It is certain if neither sample varies; its interval and p value are nan if a sample has a single value.
    """
    gap = a.mean - b.mean
    if min(len(a.values), len(b.values)) < 2:
        return Estimate(gap, math.nan, math.nan, math.nan)
    if a.std == 0 and b.std == 0:
        return Estimate(gap, gap, gap, 1.0 if gap == 0 else 0.0)
    moments = (a.mean, a.std, len(a.values), b.mean, b.std, len(b.values))
    p = float(scipy.stats.ttest_ind_from_stats(*moments, equal_var=False).pvalue)
    of_a, of_b = (sample.std**2 / len(sample.values) for sample in (a, b))  # variances of the means
    degrees = (of_a + of_b) ** 2 / (of_a**2 / (len(a.values) - 1) + of_b**2 / (len(b.values) - 1))
    margin = float(scipy.stats.t.ppf(0.975, degrees)) * math.sqrt(of_a + of_b)
    return Estimate(gap, gap - margin, gap + margin, p)


def paired(a: Sequence[float], b: Sequence[float]) -> float:
    """The p value of a zero mean difference, by Student's t test on the pairs; 1 if every pair is equal."""
    differences = np.subtract(a, b)
    if np.ptp(differences) == 0:
        return 1.0 if differences[0] == 0 else 0.0
    return float(scipy.stats.ttest_rel(a, b).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for multiple tests.

    Source:
        Holm 1979, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 65-70.
    """
    order = np.argsort(p_values)
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
