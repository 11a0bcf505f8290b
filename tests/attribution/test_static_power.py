"""Static power where it can hardly be seen: on an engine that is always busy."""

import numpy as np
import pytest

from meter.attribution.coefficients import GENERIC
from meter.attribution.fit import SIZE, Rows, Window, fit_rows


def rows(outside_s: float, extra_w: float, power_w: float = 300.0) -> Rows:
    """200 intervals of 0.1 s with some five steps each, at this power; ``extra_w``: what chance has
    put on the time outside steps."""
    rng = np.random.default_rng(1)
    features = np.zeros((200, SIZE))
    features[:, 0] = outside_s * rng.random(200)
    features[:, 1] = 5.0 + 0.2 * rng.random(200)
    run_s = 0.1 - features[:, 0]
    energy_j = 0.1 * power_w * (features[:, 1] / 5.1) + extra_w * features[:, 0]
    return Rows(features, energy_j, run_s, np.full(200, 0.2), np.full(200, 0.001))


def test_static_power_is_not_above_the_least_that_was_drawn() -> None:
    """Gaps of a millisecond must not be priced at thousands of watts: that would be their idle."""
    fit = fit_rows(rows(1e-3, 5000.0), [GENERIC], True, Window())
    assert fit.coefficients[0].static_w < 1.15 * 300.0


def test_static_power_that_can_be_seen_is_left_as_it_is() -> None:
    """With a tenth of the time outside steps it is found, far below the bound."""
    fit = fit_rows(rows(2e-2, 100.0), [GENERIC], True, Window())
    assert fit.coefficients[0].static_w == pytest.approx(100.0, rel=0.05)
