"""Noise, misfit and drift, told from what intervals leave."""

from __future__ import annotations

import numpy as np
import pytest

from meter.attribution.curve import Array
from meter.attribution.residuals import FLOOR, drift_of, noise_of

N = 3000


def left(noise: float, misfit: float, seed: int = 1) -> tuple[Array, Array, Array]:
    """Residuals of intervals with one to forty steps each, their shares and jitters."""
    rng = np.random.default_rng(seed)
    share = 1.0 / rng.uniform(1.0, 40.0, N)
    jitter = np.full(N, 0.002)
    spread = np.sqrt(noise**2 * share + misfit**2 + jitter**2)
    return spread * rng.standard_normal(N), share, jitter


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.1])
def test_noise_is_found(noise: float) -> None:
    """Of one step, whatever their number in an interval; no misfit is seen where there is none."""
    found, misfit = noise_of(*left(noise, 0.0))
    assert found == pytest.approx(noise, rel=0.06)
    assert misfit == FLOOR


def test_a_misfit_does_not_average_out() -> None:
    """It is told from the noise, which does."""
    found, misfit = noise_of(*left(0.03, 0.01))
    assert found == pytest.approx(0.03, rel=0.15)
    assert misfit == pytest.approx(0.01, rel=0.15)


def test_a_stranger_is_no_noise() -> None:
    """A fifth of the intervals far off changes little."""
    residual, share, jitter = left(0.03, 0.0)
    residual[::5] += 0.5
    found, _ = noise_of(residual, share, jitter)
    assert found == pytest.approx(0.03, rel=0.25)


def test_noise_that_is_drowned_is_about_what_is_usual() -> None:
    """Unknown is not zero: a coarse counter hides the noise of its steps."""
    found, misfit = noise_of(*left(0.03, 0.3))
    assert 0.01 < found < 0.1
    assert misfit == pytest.approx(0.3, rel=0.1)


def test_idle_alone_says_nothing() -> None:
    """No step, no noise; the least that is believed."""
    assert noise_of(np.zeros(9), np.zeros(9), np.zeros(9)) == (0.002, FLOOR)


def test_drift_is_what_stays_over_many_intervals() -> None:
    """A slow wave of 1 % beside noise of single steps; and none where there is only noise."""
    residual, share, jitter = left(0.03, 0.0)
    assert drift_of(residual, share, jitter, 0.03) == 0.0
    wave = 0.01 * np.sin(np.arange(N) / 300.0)
    assert drift_of(residual + wave, share, jitter, 0.03) == pytest.approx(0.008, rel=0.4)
