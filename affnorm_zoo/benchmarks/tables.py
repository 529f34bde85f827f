"""Markdown tables of measurements."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

VERDICTS = ("met", "missed", "not measured")


@dataclass(frozen=True)
class Bar:
    """A requirement and what was measured.

    Args:
        measure: what is measured.
        file: stem of the file with the measurement.
        value: the measured value, or None.
        required, target: the value that is required, and a better one to reach.
        at_least: whether a larger value is better.
        digits: decimals of the measured value.
    """

    measure: str
    file: str
    value: float | None
    required: float
    target: float
    at_least: bool = False
    digits: int = 2

    @property
    def verdict(self) -> str:
        """One of ``VERDICTS``."""
        if self.value is None:
            return "not measured"
        is_met = self.value >= self.required if self.at_least else self.value <= self.required
        return "met" if is_met else "missed"

    def cells(self) -> list[str]:
        """Its row of a table."""
        required, target = f"{'≥' if self.at_least else '≤'} {self.required:.2f}", f"{self.target:.2f}"
        if self.value is None:
            return [self.measure, self.file, self.verdict, required, target, ""]
        return [self.measure, self.file, f"{self.value:.{self.digits}f}", required, target, self.verdict]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def network_table(rows: list[dict[str, Any]]) -> str:
    """Rows of one :class:`affnorm_zoo.benchmarks.networks.Bench` measurement."""
    mode, first = rows[0]["mode"], rows[0]
    header = ["norm", f"{mode}_step_time (ms)", "min", "max", f"{mode}_samples_per_sec", "n", "ratio", "quartiles",
              "of minima"]  # fmt: skip
    header += ["saved (MiB)", "saved ratio"] if "saved_mib" in first else []
    header += ["peak (MiB)", "peak ratio"] if "peak_mib" in first else []
    return table(header, [_network_cells(row, mode) for row in rows])


def _network_cells(row: dict[str, Any], mode: str) -> list[str]:
    low, high = row["ratio_quartiles"]
    cells = [
        row["normalizer"], f"{row[f'{mode}_step_time']:.1f}", f"{row['step_time_min']:.1f}",
        f"{row['step_time_max']:.1f}", f"{row[f'{mode}_samples_per_sec']:.2f}", str(row["n"]), f"{row['ratio']:.3f}",
        f"{low:.2f} to {high:.2f}", f"{row['ratio_of_minima']:.3f}",
    ]  # fmt: skip
    cells += [f"{row['saved_mib']:.1f}", f"{row['saved_ratio']:.3f}"] if "saved_mib" in row else []
    return cells + ([f"{row['peak_mib']:.0f}", f"{row['peak_ratio']:.3f}"] if "peak_mib" in row else [])
