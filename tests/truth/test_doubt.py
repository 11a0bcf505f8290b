"""The doubt of receipts against the exact variance of a known engine's noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from meter.attribution import Attributor, Fit
from meter.attribution.coefficients import Coefficients
from tests.truth.case import Case
from tests.truth.costs import WHO, Array
from tests.truth.floor import _shown as shown
from tests.truth.scenarios import build

pytestmark = pytest.mark.slow

NAMES = ("static_w", "F", "a", "q", "b", "c", "e")


def told(case: Case) -> Attributor:
    """The meter, told everything that there is to know of the card but the steps' noise."""
    trace = case.trace()
    learning = Attributor(trace.devices, trace.engines, hindsight=True)
    for event in trace.events:
        learning.feed(event)
    learning.finish()
    ((id, fit),) = learning.fits().items()
    found = case.truth.devices[id].coefficients
    known = Fit(
        (Coefficients(*(found[name] for name in NAMES)),),
        np.zeros((7, 7)),
        case.noise,
        1000,
        converged=True,
        window=fit.window._replace(doubt_s=0.0),
    )
    meter = Attributor(trace.devices, trace.engines, fits={id: replace(known)}, hindsight=True)
    for event in trace.events:
        meter.feed(event)
    meter.finish()
    return meter


def exact_sd_j(case: Case) -> Array:
    """Standard deviation of each request's joules by the formula of ``attribution.resolution``,
    with dense matrices and the steps' true costs."""
    settled, (device,) = case.settled, case.truth.devices.values()
    ticks = np.unique(case.ticks[0])
    lag_s = device.delay_s - device.smear_s / 2
    part = shown(settled, ticks, lag_s, device.smear_s).astype(float)
    passes = settled.passes
    plain_j = settled.pass_j / settled.noise
    owed = np.zeros((passes.rows[:, WHO].max() + 1, len(plain_j)))
    share_j = settled.share_j / settled.noise[passes.row_pass]
    np.add.at(owed, (passes.rows[:, WHO], passes.row_pass), share_j)
    idle_s = np.maximum(np.diff(ticks) - part @ (passes.end_s - passes.start_s), 0.0)
    interval_j = part @ plain_j + device.coefficients["static_w"] * idle_s
    wrong = owed - ((owed @ part.T) / interval_j) @ (part * plain_j)
    return np.asarray(case.noise * np.sqrt(np.square(wrong).sum(axis=1)))


@pytest.mark.parametrize("name", ["moderate-h100-1", "moderate-light-3", "moderate-moe-2"])
def test_the_doubt_is_the_noise_that_intervals_leave(name: str) -> None:
    """With everything known, receipt by receipt and over all of them."""
    case = build(name, seconds=75.0)
    exact = exact_sd_j(case)
    receipts = [r for r in told(case).drain() if r.final]
    stated = np.array([r.uncertainty_j for r in receipts])
    due = np.array([exact[int(r.id.removeprefix("r"))] for r in receipts])
    assert np.square(stated).sum() == pytest.approx(np.square(due).sum(), rel=0.15)
    assert np.median(stated / due) == pytest.approx(1.0, abs=0.1)
    assert np.mean(np.abs(stated / due - 1) < 0.3) > 0.85
