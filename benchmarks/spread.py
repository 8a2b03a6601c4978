"""Medians, spreads, and ratios taken within one round.

Shared hardware drifts by tens of percent within minutes, so two contenders are compared only
inside one round, where their runs lie seconds apart; the median of those ratios is what counts.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of `count` values."""

    median: float
    low: float
    high: float
    count: int


def spread(values: Iterable[float]) -> Spread | None:
    """Return the spread of `values`, or None when there are none."""
    ordered = sorted(values)
    if not ordered:
        return None
    return Spread(statistics.median(ordered), ordered[0], ordered[-1], len(ordered))


def paired(
    left: Mapping[int, float],
    right: Mapping[int, float],
    combine: Callable[[float, float], float],
) -> Spread | None:
    """Return the spread of `combine(left, right)` over the rounds that both have.

    Args:
        left, right: value by round number.
    """
    rounds = sorted(left.keys() & right.keys())
    return spread(combine(left[number], right[number]) for number in rounds)


def ratio(left: Mapping[int, float], right: Mapping[int, float]) -> Spread | None:
    """Return the spread of left / right per round; rounds where right is 0 do not count."""
    nonzero = {number: value for number, value in right.items() if value != 0}
    return paired(left, nonzero, lambda a, b: a / b)


def difference(left: Mapping[int, float], right: Mapping[int, float]) -> Spread | None:
    """Return the spread of left - right per round."""
    return paired(left, right, lambda a, b: a - b)
