"""Joules from watts: the integral is exact where power is a line, and never bridges what is not
known."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter.power.integral import BRIDGE_NS, PowerIntegral

S = 1_000_000_000


@given(
    st.lists(st.tuples(st.integers(1, BRIDGE_NS), st.integers(0, 1000)), min_size=1, max_size=50)
)
def test_it_is_the_sum_of_the_trapezoids(steps: list[tuple[int, int]]) -> None:
    """Rounded down once, not once a reading: errors do not add up."""
    integral = PowerIntegral()
    t, points = 0, []
    for gap, power_w in steps:
        t += gap
        points.append((t, power_w))
        energy_uj = integral.add(t, float(power_w))
    expected = sum((p0 + p1) * (t1 - t0) / 2 for (t0, p0), (t1, p1) in pairwise(points)) / 1e3
    assert energy_uj == pytest.approx(expected, abs=1)


def test_a_gap_starts_from_zero() -> None:
    """As a counter after a reset does: the core then lets no interval cover the gap."""
    integral = PowerIntegral()
    integral.add(0, 300.0)
    assert integral.add(S, 300.0) == 300_000_000
    assert integral.add(3 * S, 300.0) == 0
    assert integral.add(4 * S, 100.0) == 200_000_000


def test_a_year_costs_no_precision() -> None:
    """Whole microwatt-nanoseconds: a small step after a huge sum still counts."""
    integral = PowerIntegral()
    integral.add(0, 700.0)
    integral._total = 700_000_000 * 365 * 86_400 * S  # microwatts times nanoseconds
    before_uj = integral.add(1, 700.0)
    assert integral.add(1 + 10_000_000, 0.0002) - before_uj == 3_500_001
