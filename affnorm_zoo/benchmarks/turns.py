"""The statistics of contenders that took turns, in one process or in several."""

import statistics
from typing import Any

Row = dict[str, Any]


def summarise(mode: str, rows: list[Row]) -> list[Row]:
    """Add statistics of ``step_times``, milliseconds per turn, with timm's column names where they exist.

    Ratios are to the first row: of medians, of minima, and quartiles of those of single turns.
    """
    reference = rows[0]["step_times"]
    for row in rows:
        times = row["step_times"]
        pairs = [ours / theirs for ours, theirs in zip(times, reference, strict=True)]
        median = statistics.median(times)
        row |= {
            f"{mode}_step_time": median,
            f"{mode}_samples_per_sec": 1e3 * row[f"{mode}_batch_size"] / median,
            "step_time_min": min(times),
            "step_time_max": max(times),
            "n": len(times),
            "ratio": median / statistics.median(reference),
            "ratio_of_minima": min(times) / min(reference),
            "ratio_quartiles": statistics.quantiles(pairs, n=4)[::2] if len(pairs) > 1 else pairs * 2,
        }
    return rows


def pool(mode: str, tables: list[list[Row]]) -> list[Row]:
    """One table with the turns of several processes. What is not timed is the first process's."""
    rows = [
        {**same[0], "step_times": [time for row in same for time in row["step_times"]]}
        for same in zip(*tables, strict=True)
    ]
    return summarise(mode, rows)
