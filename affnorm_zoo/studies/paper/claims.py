"""A claim of the paper, and the words for what the runs say of it."""

from dataclasses import dataclass

from affnorm_zoo.evidence.statistics import Estimate, Sample, difference
from affnorm_zoo.studies.paper.table import Row

REPRODUCED, MIXED, NOT_REPRODUCED, NO_CLAIM = "reproduced", "mixed", "not reproduced", "no claim"
VERDICTS = (REPRODUCED, MIXED, NOT_REPRODUCED)


@dataclass(frozen=True)
class Claim:
    """One row of the page.

    Args:
        statement: what the paper says.
        measured: what the runs say, in words.
        verdict: one of ``VERDICTS``, or ``NO_CLAIM`` where the paper claims nothing.
        effects: label -> what the verdict rests on, in points of accuracy; drawn.
    """

    statement: str
    measured: str
    verdict: str
    effects: dict[str, Estimate]


def majority(for_it: int, against: int, total: int) -> str:
    """Reproduced: most networks show it, none the opposite. Not reproduced: none show it, or as many the opposite."""
    if for_it > total / 2 and not against:
        return REPRODUCED
    return NOT_REPRODUCED if against >= for_it or not for_it else MIXED


def all_or_some(held: list[bool]) -> str:
    """Reproduced if all held, mixed if some did."""
    return REPRODUCED if all(held) else MIXED if any(held) else NOT_REPRODUCED


def gap(a: Row, b: Row) -> Estimate:
    """The accuracy of a above that of b, in points."""
    return difference(a.accuracy, b.accuracy).in_points()


def say_gap(estimate: Estimate) -> str:
    """A difference and its p value."""
    return f"{estimate.value:+.1f} points (p = {estimate.p:.2g})"


def say_slope(estimate: Estimate) -> str:
    """A slope, its interval and its p value."""
    return f"{estimate.value:+.2f} points ({estimate.low:+.2f} to {estimate.high:+.2f}, p = {estimate.p:.2g})"


def say_range(values: list[float]) -> str:
    """Mean, least and largest of some points."""
    return f"{Sample(tuple(values)).mean:+.1f} points on average ({min(values):+.1f} to {max(values):+.1f})"
