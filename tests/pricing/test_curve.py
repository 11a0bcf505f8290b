"""The energy curve: straight between points, bounded in memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter.pricing import EnergyCurve


def test_it_is_straight_between_points_and_flat_outside():
    """Energy between two settled moments is taken as even."""
    curve = EnergyCurve()
    curve.add(10, 1.0)
    curve.add(20, 3.0)
    assert [curve.at(t) for t in (5, 10, 15, 20, 30)] == [1.0, 1.0, 2.0, 3.0, 3.0]


def test_a_point_that_is_not_later_is_ignored():
    """The settled watermark may stand still."""
    curve = EnergyCurve()
    curve.add(10, 1.0)
    curve.add(10, 9.0)
    assert curve.at(10) == 1.0


def test_an_empty_curve_knows_nothing():
    """And neither does one that ends before the time asked for."""
    curve = EnergyCurve()
    assert curve.own_time_ns(1.0, 0, 10) is None
    curve.add(0, 0.0)
    curve.add(5, 1.0)
    assert curve.own_time_ns(1.0, 6, 10) is None


@given(st.integers(50, 400))
def test_thinning_keeps_the_ends_and_the_shape(points):
    """On a straight line nothing is lost by thinning, and memory stays bounded."""
    curve = EnergyCurve(points=32)
    for t in range(points):
        curve.add(t, 2.0 * t)
    assert curve.at(0) == 0.0
    assert curve.at(points - 1) == 2.0 * (points - 1)
    assert curve.at(points // 2) == pytest.approx(points // 2 * 2.0)
    assert len(curve._t_ns) <= 32
