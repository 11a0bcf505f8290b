"""Histograms: bounds, counting, exemplars."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter.export.histogram import REQUEST_BOUNDS_J, TOKEN_BOUNDS_J, Example, Histogram, log_bounds


def test_bounds_are_three_a_decade():
    """From 10 mJ to 100 kJ a request, from 1 mJ to 100 J a token."""
    assert log_bounds(-1, 0) == (0.1, 0.22, 0.46, 1.0)
    assert (REQUEST_BOUNDS_J[0], REQUEST_BOUNDS_J[-1], len(REQUEST_BOUNDS_J)) == (0.01, 1e5, 22)
    assert (TOKEN_BOUNDS_J[0], TOKEN_BOUNDS_J[-1], len(TOKEN_BOUNDS_J)) == (0.001, 100.0, 16)


@given(st.lists(st.floats(0, 1e6)))
def test_every_value_is_counted_once(values):
    """And the sum is theirs."""
    histogram = Histogram(REQUEST_BOUNDS_J)
    for value in values:
        histogram.observe(Example("r", value, 0.0))
    state = histogram.state()
    assert sum(state.counts) == len(values)
    assert state.sum == pytest.approx(sum(values))


def test_a_value_on_a_bound_is_within_it():
    """``le`` means less or equal; the last bucket has no bound."""
    histogram = Histogram((1.0, 2.0))
    for value in (1.0, 1.5, 2.0, 3.0):
        histogram.observe(Example("r", value, 0.0))
    assert histogram.state().counts == (1, 2, 1)


def test_a_bucket_remembers_its_last_request():
    """So that a request can be found from any part of the distribution."""
    histogram = Histogram((1.0,))
    histogram.observe(Example("first", 0.5, 1.0))
    histogram.observe(Example("second", 0.6, 2.0))
    assert histogram.state().examples == (Example("second", 0.6, 2.0), None)
