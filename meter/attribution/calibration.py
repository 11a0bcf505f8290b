"""Learns what work costs on one device, from nothing but intervals: their joules and their work.

Robust non-negative least squares over a window of intervals, on relative residuals (a step's noise
is a share of its cost), re-weighted by Tukey's biweight so that one bad interval never spoils the
fit. A prior stands where the data say nothing: its scale is always taken from the data, and how
firmly it is believed is itself chosen by the data (the firmest that does not worsen the fit).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meter.attribution.coefficients import GENERIC, Coefficients, Features, Prior

_Array = NDArray[np.float64]

_WINDOW = 4096
_FIRST_FIT = 8
_CONVERGED = 60
_REFIT_EVERY_MAX = 64
_ROBUST_ROUNDS = 6
_TUKEY = 4.685
_MAD_TO_SD = 1.4826
_SPREAD_MIN = 0.01
#: Standard deviation of the prior relative to its value: firm, loose, hardly there.
_FIRMNESS_INFORMED = (0.4, 1.5, 30.0)
_FIRMNESS_GENERIC = (30.0,)


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients with their doubt. ``covariance`` is 6 × 6 in the order of ``Features``.

    ``spread``: robust standard deviation of an interval's relative residual. ``converged`` is
    false until enough busy intervals were seen; until then nothing is bounded by the fit.
    """

    coefficients: Coefficients
    covariance: _Array
    spread: float
    intervals: int
    converged: bool

    def sd(self) -> tuple[float, ...]:
        """One standard deviation of each coefficient."""
        return tuple(float(v) for v in np.sqrt(np.maximum(np.diag(self.covariance), 0.0)))


def unfitted(prior: Prior) -> Fit:
    """The prior alone, with the doubt it deserves."""
    scale = 0.4 if prior.informed else 3.0
    doubt = np.diag([(scale * value) ** 2 for value in prior.coefficients])
    return Fit(prior.coefficients, doubt, 1.0, 0, converged=False)


class Calibration:
    """The intervals of one device and the fit to them, renewed as they come.

    ``fixed`` replaces learning by a given fit (replay with ``--calibration whole``).
    """

    def __init__(self, prior: Prior = GENERIC, fixed: Fit | None = None) -> None:
        self.prior = prior
        self.fit = fixed or unfitted(prior)
        self._fixed = fixed is not None
        self._rows = np.zeros((_WINDOW, 7))
        self._seen = 0
        self._busy = 0
        self._due = _FIRST_FIT

    def add(self, work: Features, energy_j: float) -> None:
        """Learn from one interval (joules of this device over exactly this work)."""
        if self._fixed:
            return
        row = self._rows[self._seen % _WINDOW]
        row[:6] = work
        row[6] = energy_j
        self._seen += 1
        self._busy += work.steps > 0
        if self._seen >= self._due:
            self._due = self._seen + min(_REFIT_EVERY_MAX, max(4, self._seen // 10))
            self.refit()

    def refit(self) -> None:
        """Fit the window as it stands now."""
        count = min(self._seen, _WINDOW)
        if count >= _FIRST_FIT and self._busy:
            self.fit = fit_intervals(
                self._rows[:count], self.prior, converged=self._busy >= _CONVERGED
            )


def fit_intervals(rows: _Array, prior: Prior, converged: bool = True) -> Fit:
    """Fit coefficients to ``rows`` (n × 7: features in order, then joules)."""
    x, y = rows[:, :6], rows[:, 6]
    start = _scaled(prior.coefficients, x, y)
    best: Fit | None = None
    best_loss = 0.0
    for firmness in reversed(_FIRMNESS_INFORMED if prior.informed else _FIRMNESS_GENERIC):
        fit, loss = _robust_fit(x, y, start, firmness, converged)
        if best is None:
            best, best_loss = fit, loss
        elif loss <= best_loss * (1 + 12 / len(y)):
            best = fit
    assert best is not None
    return best


def _scaled(shape: Coefficients, x: _Array, y: _Array) -> _Array:
    """The prior, brought to the scale of the data: static and step costs each by its median."""
    theta = np.array(shape)
    idle = x[:, 0] > 0
    only_idle = idle & (x[:, 1] == 0)
    busy = x[:, 1] > 0
    if only_idle.any():
        theta[0] = np.median(y[only_idle] / x[only_idle, 0])
    if busy.any():
        left = np.maximum(y[busy] - theta[0] * x[busy, 0], 0.0)
        theta[1:] *= max(float(np.median(left / (x[busy, 1:] @ theta[1:]))), 1e-12)
    return theta


def _robust_fit(
    x: _Array, y: _Array, start: _Array, firmness: float, converged: bool
) -> tuple[Fit, float]:
    """Iteratively re-weighted fit; returns it with its loss (weighted mean squared residual)."""
    theta = start
    ridge = 1.0 / np.square(firmness * np.maximum(start, 1e-30))
    spread = 0.3
    hessian = np.eye(6)
    trust = np.ones(len(y))
    for _ in range(_ROBUST_ROUNDS):
        expected = x @ theta
        floor = 0.1 * float(np.median(expected)) + 1e-30
        sigma = np.maximum(expected, floor)
        weight = trust / np.square(sigma * spread)
        hessian = (x * weight[:, None]).T @ x + np.diag(ridge)
        theta = _non_negative(hessian, x.T @ (weight * y) + ridge * start)
        residual = (y - x @ theta) / np.maximum(x @ theta, floor)
        spread = max(_SPREAD_MIN, _MAD_TO_SD * float(np.median(np.abs(residual))))
        trust = np.square(np.maximum(0.0, 1 - np.square(residual / (_TUKEY * spread))))
    loss = float((trust * np.square(residual)).sum() / max(1.0, trust.sum()))
    inverse: _Array = np.linalg.pinv(hessian, hermitian=True).astype(np.float64)
    fit = Fit(
        coefficients=Coefficients(*(float(v) for v in theta)),
        covariance=inverse * _correlation_factor(residual, trust),
        spread=spread,
        intervals=len(y),
        converged=converged,
    )
    return fit, loss


def _correlation_factor(residual: _Array, trust: _Array) -> float:
    """How much neighbouring residuals repeat each other: ``(1 + ρ)/(1 − ρ)``, never below 1."""
    kept = np.where(trust > 0, residual, 0.0)
    power = float(kept @ kept)
    rho = float(kept[1:] @ kept[:-1]) / power if power > 0 else 0.0
    rho = min(max(rho, 0.0), 0.9)
    return (1 + rho) / (1 - rho)


def _non_negative(hessian: _Array, target: _Array) -> _Array:
    """Minimise ``½ θᵀHθ − tᵀθ`` over ``θ ≥ 0`` (Lawson and Hanson's active set, normal form)."""
    scale = 1.0 / np.sqrt(np.diag(hessian))
    h, t = hessian * np.outer(scale, scale), target * scale
    size = len(t)
    theta = np.zeros(size)
    free = np.zeros(size, dtype=bool)
    for _ in range(3 * size):
        gradient = t - h @ theta
        gradient[free] = -np.inf
        best = int(np.argmax(gradient))
        if gradient[best] <= 1e-12:
            break
        free[best] = True
        while True:
            trial = np.zeros(size)
            trial[free] = np.linalg.solve(h[np.ix_(free, free)], t[free])
            if (trial[free] > 0).all():
                theta = trial
                break
            blocked = free & (trial <= 0)
            ratio = theta[blocked] / np.maximum(theta[blocked] - trial[blocked], 1e-300)
            theta = theta + float(ratio.min()) * (trial - theta)
            free &= theta > 1e-15
    return theta * scale
