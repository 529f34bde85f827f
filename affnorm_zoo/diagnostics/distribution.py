import math
from typing import Any

import torch
from torch import Tensor

_BINS_A_DECADE = 500
_DECADES = 20  # on either side of 1
_QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)


class Distribution:
    """Mean, standard deviation, extremes and quantiles of a stream, in constant memory.

    Quantiles come from a histogram of signed logarithms. Their error is less than 0.3 % of their value for sizes
    between 1e-20 and 1e20. Smaller values count as 0.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._square_sum = 0.0  # of deviations from the mean
        self.low, self.high = math.inf, -math.inf
        self._num_bins = 2 * _DECADES * _BINS_A_DECADE
        # bins: negative values from large to small size, zero, positive values from small to large
        self._histogram = torch.zeros(2 * self._num_bins + 1, dtype=torch.int64)

    def add(self, values: Tensor) -> None:
        """Add values of any shape.

        Raises:
            ValueError: a value is non-finite.

        Source:
            Chan, Golub & LeVeque 1983, https://doi.org/10.1080/00031305.1983.10483115, for joining the moments.
        """
        values = values.detach().flatten().double().cpu()
        if not len(values):
            return
        if not values.isfinite().all():
            raise ValueError("a distribution takes finite values; the model's activations or gradients overflow")
        mean, total = values.mean().item(), self.count + len(values)
        gap = mean - self.mean
        self._square_sum += (values - mean).square().sum().item() + gap**2 * self.count * len(values) / total
        self.mean += gap * len(values) / total
        self.count = total
        self.low, self.high = min(self.low, values.min().item()), max(self.high, values.max().item())
        size = (values.abs().clamp_min(1e-300).log10() + _DECADES) * _BINS_A_DECADE
        size = size.floor().clamp(-1, self._num_bins - 1).long() + 1  # 0 for values that count as zero
        index = self._num_bins + torch.where(values < 0, -size, size)
        self._histogram += torch.bincount(index, minlength=len(self._histogram))

    @property
    def std(self) -> float:
        """Standard deviation of the values, as of a full population."""
        return math.sqrt(self._square_sum / self.count) if self.count else math.nan

    def quantile(self, fraction: float) -> float:
        """The value that ``fraction`` of all values do not exceed."""
        if not self.count:
            return math.nan
        rank = max(math.ceil(fraction * self.count), 1)
        index = int(torch.searchsorted(self._histogram.cumsum(0), rank)) - self._num_bins
        if index == 0:
            return 0.0
        value = math.copysign(10 ** ((abs(index) - 0.5) / _BINS_A_DECADE - _DECADES), index)
        return min(max(value, self.low), self.high)

    def summary(self) -> dict[str, Any]:
        """Count, mean, standard deviation, extremes and quantiles, for JSON."""
        quantiles = {f"p{100 * fraction:02.0f}": self.quantile(fraction) for fraction in _QUANTILES}
        return {"n": self.count, "mean": self.mean, "std": self.std, "min": self.low, "max": self.high, **quantiles}
