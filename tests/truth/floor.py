"""The error that nobody can get below: what is left when every coefficient and the counter's lag
and smear are known, and only the noise of each single step has to be guessed from its intervals.

Steps are noisy one by one, but the counter shows sums over several. With everything else known the
best guess of each step's noise is linear in the intervals' residuals (all is Gaussian): the
posterior mean. A request of few steps keeps part of their noise as its error, whatever the meter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.truth.case import Case
from tests.truth.costs import WHO, Array, Ints
from tests.truth.score import Errors, rule_errors
from tests.truth.settle import Settled

_QUANTUM_J = 1e-3


def floor(case: Case, after_s: float = 0.0) -> Errors | None:
    """``None`` where several boards work, where steps are lost, or where there is no noise."""
    if len(case.devices) != 1 or case.truth.lost_j or not case.noise:
        return None
    settled = case.settled
    ticks = np.unique(case.ticks[0])
    (device,) = case.truth.devices.values()
    shown = _shown(settled, ticks, device.delay_s - device.smear_s / 2, device.smear_s)
    guess = _best_guess(shown, settled.pass_j, settled.noise - 1.0, case.noise)
    passes = settled.passes
    scale = ((1.0 + guess) / settled.noise)[passes.row_pass]
    who = passes.rows[:, WHO]
    joules = np.bincount(who, settled.share_j * scale)
    return rule_errors(case, {f"r{i}": float(joules[i]) for i in np.unique(who)}, after_s)


def _shown(settled: Settled, ticks: Array, lag_s: float, smear_s: float) -> NDArray[np.float32]:
    """Shape (intervals, passes): which part of each pass's joules each interval shows."""
    start, end = settled.passes.start_s + lag_s, settled.passes.end_s + lag_s
    first = np.clip(np.searchsorted(ticks, start) - 1, 0, len(ticks) - 2)
    last = np.clip(np.searchsorted(ticks, end + smear_s), 0, len(ticks) - 2)
    shown = np.zeros((len(ticks) - 1, len(start)), dtype=np.float32)
    for offset in range(int((last - first).max()) + 1):
        place: Ints = np.minimum(first + offset, last)
        here = first + offset <= last
        part = _by(ticks[place + 1], start, end, smear_s) - _by(ticks[place], start, end, smear_s)
        shown[place[here], np.flatnonzero(here)] = part[here]
    return shown


def _by(t: Array, start: Array, end: Array, width: float) -> Array:
    """Which part of each pass a counter shows by ``t`` (lag apart)."""
    if width <= 0:
        return np.clip((t - start) / (end - start), 0.0, 1.0)
    area = _area(t, start, end) - _area(t - width, start, end)
    return area / width


def _area(t: Array, start: Array, end: Array) -> Array:
    """The integral of a pass's rising share up to ``t``."""
    inside = np.clip(t, start, end) - start
    return inside**2 / (2.0 * (end - start)) + np.maximum(t - end, 0.0)


def _best_guess(shown: NDArray[np.float32], pass_j: Array, noise: Array, spread: float) -> Array:
    """The posterior mean of each pass's noise, given the intervals' sums."""
    plain_j = pass_j / (1.0 + noise)
    weighted = shown * (plain_j * spread).astype(np.float32)
    residual = (shown * (plain_j * noise).astype(np.float32)).sum(axis=1, dtype=np.float64)
    variance = (weighted @ weighted.T).astype(np.float64)
    variance[np.diag_indices_from(variance)] += _QUANTUM_J**2
    answer = np.linalg.solve(variance, residual)
    return spread * np.asarray(weighted.T @ answer, dtype=np.float64)
