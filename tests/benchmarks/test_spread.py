import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.spread import Spread, difference, ratio, spread


def test_spread_of_nothing_is_nothing() -> None:
    assert spread([]) is None


def test_spread_has_median_and_bounds() -> None:
    assert spread([5, 1, 3]) == Spread(3, 1, 5, 3)
    assert spread([4, 1]) == Spread(2.5, 1, 4, 2)


@given(st.lists(st.floats(0, 1e9), min_size=1))
def test_median_lies_within_the_bounds(values: list[float]) -> None:
    found = spread(values)
    assert found is not None
    assert found.low <= found.median <= found.high


def test_ratios_are_taken_within_each_round() -> None:
    # The machine doubles its speed from round to round: the ratio stays.
    left = {0: 10.0, 1: 20.0, 2: 40.0}
    right = {0: 5.0, 1: 10.0, 2: 20.0}
    assert ratio(left, right) == Spread(2.0, 2.0, 2.0, 3)


def test_rounds_that_only_one_side_has_do_not_count() -> None:
    assert ratio({0: 10.0, 1: 99.0}, {0: 5.0, 2: 1.0}) == Spread(2.0, 2.0, 2.0, 1)
    assert ratio({0: 1.0}, {1: 1.0}) is None


def test_a_round_without_a_divisor_does_not_count() -> None:
    assert ratio({0: 1.0, 1: 3.0}, {0: 0.0, 1: 1.0}) == Spread(3.0, 3.0, 3.0, 1)


def test_differences_are_taken_within_each_round() -> None:
    found = difference({0: 12.0, 1: 30.0}, {0: 10.0, 1: 20.0})
    assert found is not None
    assert (found.low, found.high) == (2.0, 10.0)
    assert found.median == pytest.approx(6.0)
