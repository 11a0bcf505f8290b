"""The non-negative minimum that the fit rests on."""

from __future__ import annotations

import numpy as np
import pytest

from meter.attribution.fit import non_negative


@pytest.mark.parametrize("seed", range(60))
def test_no_step_from_the_minimum_leads_down(seed: int) -> None:
    """Where a coefficient is free the slope is zero; where it is held at zero it leads up.

    Whether the first guess of who is free was right or not; columns differ by many orders of size.
    """
    rng = np.random.default_rng(seed)
    size = 10.0 ** rng.uniform(-6, 3, 7)
    rows = rng.normal(0.5, 1.0, (20, 7)) * size
    target = rows @ (rng.normal(0.0, 1.0, 7) / size) + rng.normal(0.0, 0.1, 20)
    hessian = rows.T @ rows + np.diag(1e-9 * size**2)
    theta = non_negative(hessian, rows.T @ target)
    slope = (hessian @ theta - rows.T @ target) / size
    assert (theta >= 0).all()
    assert np.abs(slope[theta > 0]).max(initial=0.0) < 1e-8
    assert slope[theta == 0].min(initial=0.0) > -1e-8
