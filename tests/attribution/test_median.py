"""The median is numpy's, to the last bit."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from meter.attribution.median import median


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=40))
def test_it_is_what_numpy_says(values: list[float]) -> None:
    """For odd and even numbers of values, and for equal ones."""
    assert median(np.array(values)) == np.median(values)
