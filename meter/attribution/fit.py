"""Fits what work costs to intervals whose joules and work are known.

Engines of different models on one device share its static power, and have coefficients of their own
for all else: features and coefficients of ``m`` models stand in one row of 1 + 6·m, seconds first.

Robust non-negative least squares on relative residuals (a step's noise is a share of its cost),
re-weighted by Tukey's biweight so that one bad interval, or a stranger's load, never spoils the
fit. A prior stands where the data say nothing: its scale is always taken from the data, and how
firmly it is believed is itself chosen by the data (the firmest that does not worsen the fit).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from meter.attribution.coefficients import Coefficients, Features, Prior
from meter.attribution.curve import Array
from meter.attribution.median import median
from meter.attribution.residuals import FLOOR, correlation, drift_of, noise_of, variance_of

SIZE = len(Features._fields)
#: Of these, what each model has for itself.
OWN = SIZE - 1
#: What a receipt's doubt may rest on: its model's coefficients, and after them the counter's delay.
DOUBTED = SIZE + 1

_ROUNDS = 8
_STILL = 1e-4
_PRESENT = 1e-9
#: The least power of intervals, but for a few whose edges are off; and how far off it may be.
_LEAST, _ABOVE_LEAST = 0.02, 1.1
_FLAT = 1e-12
_TUKEY = 4.685
#: Standard deviation of the prior relative to its value: firm, loose, hardly there.
_FIRMNESS_INFORMED = (0.4, 1.5, 30.0)
_FIRMNESS_GENERIC = (30.0,)
#: What was learned in an earlier life is believed less: so many sigmas, and so much of its value.
_AGED = 3.0
_FADED = 0.1
#: Standard deviation of a delay that has not been found.
_UNKNOWN_DELAY_S = 0.1


class Window(NamedTuple):
    """How the counter sees: it shows what was drawn ``delay_s`` ago, averaged over ``width_s``.

    ``doubt_s``: one standard deviation of the delay; ``None`` while it has not been found.
    """

    delay_s: float = 0.0
    width_s: float = 0.0
    doubt_s: float | None = None


_SHARP = Window()


@dataclass(frozen=True, slots=True)
class Fit:
    """Each model's coefficients, with their doubt; ``static_w`` is the same in all of them.

    ``covariance``: of all coefficients in one row (1 + 6·m square). ``noise``: robust relative
    standard deviation of one step. ``pace``: seconds per feature that each model's steps usually
    take (none while unknown). ``shared``: several engines use the device, and may slow each other
    down; then ``static_w`` alone holds static power, and a step carries it by the time it took.
    ``misfit``: what neither noise nor known edges explain of an interval, relative: ticks that
    wander, a coarse counter, a form that is wrong. ``drift``: the same of many intervals together.
    ``unaided``: how far ``coefficients`` may be off where the prior is hardly believed, squared as
    in ``covariance`` (``None``: the same).
    ``converged`` is false until enough busy intervals were seen; until then nothing is bounded by
    the fit.
    """

    coefficients: tuple[Coefficients, ...]
    covariance: Array
    noise: float
    intervals: int
    converged: bool
    window: Window = _SHARP
    pace: tuple[Coefficients, ...] = ()
    misfit: float = FLOOR
    drift: float = 0.0
    taught: tuple[int, ...] = ()
    shared: bool = False
    unaided: Array | None = None

    def usual(self, model: int) -> Coefficients:
        """A model's coefficients, with the static power of the time that its work usually takes."""
        own = self.coefficients[model]
        if not (self.shared and self.pace):
            return own
        added = [cost + own.static_w * s for cost, s in zip(own, self.pace[model], strict=True)]
        return Coefficients(own.static_w, *added[1:])

    def knows(self, features: Array, least: int) -> NDArray[np.bool_]:
        """Where all work is of a kind that at least so many intervals have taught: (n,).

        ``features``: (n, 1 + 6·m).
        """
        if not self.taught:
            return np.zeros(len(features), dtype=bool)
        seldom = np.array(self.taught) < least
        return np.asarray(~(features[:, seldom] > _PRESENT).any(axis=1))

    def sd(self, model: int) -> Coefficients:
        """One standard deviation of each of a model's coefficients."""
        variance = np.maximum(np.diag(self.covariance)[columns_of(model)], 0.0)
        return Coefficients(*np.sqrt(variance).tolist())

    def doubts(self, model: int) -> Array:
        """Covariance of a model's coefficients and the delay: 8 × 8."""
        doubts = np.zeros((DOUBTED, DOUBTED))
        own = columns_of(model)
        doubts[:SIZE, :SIZE] = self.covariance[np.ix_(own, own)]
        late_s = self.window.doubt_s
        doubts[SIZE, SIZE] = (_UNKNOWN_DELAY_S if late_s is None else late_s) ** 2
        return doubts

    def relative_variance(
        self, features: Array, foreseen_j: Array, run_share: Array, jitter: Array
    ) -> Array:
        """Variance of ``ΔE / foreseen`` by interval: steps' noise, edges, and the fit's own doubt.

        A prior lessens it nowhere: what only a data sheet says convicts nobody. ``features``:
        (n, 1 + 6·m); the rest (n,): joules foreseen, Σ of squared shares of single steps, doubt of
        the edges as a share of the interval.
        """
        covariance = self.covariance if self.unaided is None else self.unaided
        doubt = (features @ covariance * features).sum(axis=1)
        doubt /= np.maximum(np.square(foreseen_j), 1e-300)
        return np.asarray(self.noise**2 * run_share + np.square(jitter) + doubt + self.misfit**2)


def columns_of(model: int) -> list[int]:
    """Where a model's features, or coefficients, stand in a row of all models'."""
    first = 1 + model * OWN
    return [0, *range(first, first + OWN)]


def in_one_row(models: Sequence[Sequence[float]]) -> Array:
    """All models' coefficients as one row (1 + 6·m)."""
    return np.array([*models[0][:1], *(value for model in models for value in model[1:])])


def by_model(row: Array) -> tuple[Coefficients, ...]:
    """The reverse."""
    return tuple(Coefficients(*row[columns_of(model)].tolist()) for model in range(len(row) // OWN))


def steps_of(features: Array) -> Array:
    """How many steps of any model each row (n, 1 + 6·m) holds."""
    return np.asarray(features[:, 1::OWN].sum(axis=1))


class Rows(NamedTuple):
    """Intervals to learn from, each a row: features (n, 1 + 6·m) and (n,) the rest.

    ``energy_j``; ``run_s``, seconds with a step; ``run_share``, Σ of squared shares that single
    steps have in the interval's joules; ``jitter``, doubt of the edges as a share of the interval.
    """

    features: Array
    energy_j: Array
    run_s: Array
    run_share: Array
    jitter: Array

    @classmethod
    def of(cls, table: Array) -> Rows:
        """From one array (n, 1 + 6·m + 4), columns in this order."""
        return cls(table[:, :-4], *(table[:, i] for i in range(-4, 0)))


def unfitted(priors: Sequence[Prior]) -> Fit:
    """The priors of the device's models alone, with the doubt they deserve."""
    scale = 0.4 if _informed(priors) else 3.0
    start = in_one_row([prior.coefficients for prior in priors])
    return Fit(by_model(start), np.diag(np.square(scale * start)), 0.05, 0, converged=False)


def widened(fit: Fit, prior: Prior) -> Fit:
    """The fit, and a further model beside those it knows."""
    scale = 0.4 if prior.informed else 3.0
    own = np.array(prior.coefficients[1:])
    size = len(fit.covariance)
    covariance = np.diag(np.concatenate((np.zeros(size), np.square(scale * own))))
    covariance[:size, :size] = fit.covariance
    row = np.concatenate((in_one_row(fit.coefficients), own))
    pace = np.concatenate((in_one_row(fit.pace), np.zeros(OWN))) if fit.pace else np.zeros(0)
    return replace(
        fit,
        coefficients=by_model(row),
        covariance=covariance,
        pace=by_model(pace),
        converged=False,
        taught=(),
    )


def beside_others(fit: Fit) -> Fit:
    """The fit of a device that several engines use from now on."""
    if fit.shared:
        return fit
    row = in_one_row(fit.coefficients)
    if fit.pace:
        row[1:] = np.maximum(row[1:] - row[0] * in_one_row(fit.pace)[1:], 0.0)
    return replace(fit, coefficients=by_model(row), shared=True, converged=False)


def fit_rows(
    rows: Rows,
    priors: Sequence[Prior],
    converged: bool,
    window: Window,
    restored: Fit | None = None,
    shared: bool = False,
) -> Fit:
    """Fit coefficients to ``rows``; ``restored`` is what an earlier life had learned.

    ``shared``: as in ``Fit``; then the features' seconds hold all time, steps' too.
    """
    if restored is not None:
        start = in_one_row(restored.coefficients)
        doubt = _AGED**2 * restored.covariance + np.diag(np.square(_FADED * start) + 1e-30)
        belief = _inverse(doubt)
    else:
        start = _scaled(in_one_row([prior.coefficients for prior in priors]), rows)
        belief = np.diag(1.0 / np.square(np.maximum(start, 1e-30)))
    informed = _informed(priors) or restored is not None
    *firmer, loosest = _FIRMNESS_INFORMED if informed else _FIRMNESS_GENERIC
    alone = best = found = _robust(rows, start, belief / loosest**2, None)
    for firmness in reversed(firmer):
        found = _robust(rows, start, belief / firmness**2, found)
        if found.loss <= alone.loss * (1 + 12 / len(rows.energy_j)):
            best = found
    theta = best.theta.copy()
    theta[0] = min(theta[0], _most_static_w(rows, shared))
    return Fit(
        coefficients=by_model(theta),
        covariance=best.covariance,
        noise=best.noise,
        intervals=len(rows.energy_j),
        converged=converged,
        window=window,
        pace=by_model(_pace(rows, best.trust)),
        misfit=best.misfit,
        drift=best.drift,
        shared=shared,
        unaided=alone.covariance + np.outer(alone.theta - theta, alone.theta - theta),
        taught=tuple((rows.features > _PRESENT).sum(axis=0).tolist()),
    )


def _most_static_w(rows: Rows, shared: bool) -> float:
    """Static power always flows: it is not above what intervals of the least power drew.

    An engine that is always busy shows static power only in gaps of microseconds: there the fit
    took thousands of watts, and their idle with it.
    """
    seconds = rows.features[:, 0] if shared else rows.features[:, 0] + rows.run_s
    power_w = rows.energy_j / np.maximum(seconds, 1e-9)
    return _ABOVE_LEAST * float(np.quantile(power_w, _LEAST))


def _informed(priors: Sequence[Prior]) -> bool:
    return all(prior.informed for prior in priors)


class _Solution(NamedTuple):
    theta: Array
    covariance: Array
    noise: float
    misfit: float
    drift: float
    loss: float
    trust: Array


def _scaled(shape: Array, rows: Rows) -> Array:
    """The prior, brought to the scale of the data: static and step costs each by its median.

    Of several models, each by what is left of all together.
    """
    x, y = rows.features, rows.energy_j
    theta = shape.copy()
    busy = steps_of(x) > 1e-9
    only_idle = (x[:, 0] > 0) & ~busy
    if only_idle.any():
        theta[0] = median(y[only_idle] / x[only_idle, 0])
    if busy.any():
        left = np.maximum(y[busy] - theta[0] * x[busy, 0], 0.0)
        foreseen = x[busy, 1:] @ theta[1:]
        theta[1:] *= max(median(left / foreseen), 1e-12)
    return theta


def _robust(rows: Rows, start: Array, belief: Array, near: _Solution | None) -> _Solution:
    """Iteratively re-weighted fit; ``belief`` is the precision of ``start``.

    ``near``: the solution under another belief; most often this one is next to it.
    """
    x, y = rows.features, rows.energy_j
    theta, trust = (start, np.ones(len(y))) if near is None else (near.theta, near.trust)
    noise, misfit = (0.3, FLOOR) if near is None else (near.noise, near.misfit)
    hessian = np.eye(len(start))
    expected = x @ theta
    size = _size(expected)
    variance = variance_of(rows.run_share, rows.jitter, noise, misfit)
    for _ in range(_ROUNDS):
        weight = trust / (np.square(size) * variance)
        hessian = (x * weight[:, None]).T @ x + belief
        before, theta = theta, non_negative(hessian, x.T @ (weight * y) + belief @ start)
        expected = x @ theta
        size = _size(expected)
        residual = (y - expected) / size
        noise, misfit = noise_of(residual, rows.run_share, rows.jitter)
        variance = variance_of(rows.run_share, rows.jitter, noise, misfit)
        standard = residual / np.sqrt(variance)
        spread = max(1.0, median(np.abs(standard)) * 1.4826)
        trust = np.square(np.maximum(0.0, 1 - np.square(standard / (_TUKEY * spread))))
        if (np.abs(theta - before) <= _STILL * np.abs(before)).all():
            break
    loss = float((trust * np.square(standard)).sum() / max(1.0, trust.sum()))
    covariance = _inverse(hessian) * max(1.0, loss) * correlation(standard, trust)
    kept = trust > 0
    drift = drift_of(residual[kept], rows.run_share[kept], rows.jitter[kept], noise)
    return _Solution(theta, covariance, noise, misfit, drift, loss, trust)


def _size(expected_j: Array) -> Array:
    """What residuals are relative to: the joules expected, but for next to nothing."""
    return np.maximum(expected_j, 0.1 * median(expected_j) + 1e-30)


def _inverse(matrix: Array) -> Array:
    """The inverse of a positive matrix whose rows may differ by many orders of magnitude."""
    scale = 1.0 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    inner = np.linalg.pinv(matrix * np.outer(scale, scale), hermitian=True)
    return np.asarray(inner * np.outer(scale, scale))


def _pace(rows: Rows, trust: Array) -> Array:
    """Seconds that each feature usually adds to steps: a plain fit, twice, without slow ones."""
    x = rows.features.copy()
    x[:, 0] = 0.0
    pace = np.zeros(x.shape[1])
    kept = (steps_of(x) > 1e-9) & (trust > 0)
    if kept.sum() < len(pace):
        return pace
    for _ in range(3):
        a, seconds = x[kept], rows.run_s[kept]
        weight = 1.0 / np.square(np.maximum(seconds, 1e-6))
        hessian = (a * weight[:, None]).T @ a
        hessian += np.diag(1e-9 * np.diag(hessian) + 1e-300)
        pace = non_negative(hessian, a.T @ (weight * seconds))
        off = np.abs(rows.run_s / np.maximum(x @ pace, 1e-9) - 1.0)
        limit = 5 * max(0.01, median(off[kept]))
        kept &= off < limit
        if kept.sum() < len(pace):
            break
    return np.asarray(pace)


def non_negative(hessian: Array, target: Array) -> Array:
    """Minimise ``½ θᵀHθ − tᵀθ`` over ``θ ≥ 0``."""
    scale = 1.0 / np.sqrt(np.diag(hessian))
    h, t = hessian * np.outer(scale, scale), target * scale
    theta = _solve(h, t)
    if (theta < 0).any():
        # Most often those that come out positive here are the ones that are free.
        theta = _solved(h, t, theta > 0)
        if (theta < 0).any() or ((t - h @ theta)[theta == 0] > _FLAT).any():
            theta = _active_set(h, t)
    return np.asarray(theta * scale)


def _solved(h: Array, t: Array, free: NDArray[np.bool_]) -> Array:
    """The minimum where only the ``free`` ones may differ from zero."""
    theta = np.zeros(len(t))
    theta[free] = _solve(h[np.ix_(free, free)], t[free])
    return theta


def _solve(h: Array, t: Array) -> Array:
    """``h⁻¹t``; where columns are alike to the last digit, the smallest of all solutions."""
    try:
        return np.asarray(np.linalg.solve(h, t))
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.lstsq(h, t, rcond=None)[0])


def _active_set(h: Array, t: Array) -> Array:
    """The method of Lawson and Hanson, in normal form."""
    theta = np.zeros(len(t))
    free = np.zeros(len(t), dtype=bool)
    for _ in range(3 * len(t)):
        gradient = t - h @ theta
        gradient[free] = -np.inf
        best = int(np.argmax(gradient))
        if gradient[best] <= _FLAT:
            break
        free[best] = True
        while True:
            trial = _solved(h, t, free)
            if (trial[free] > 0).all():
                theta = trial
                break
            blocked = free & (trial <= 0)
            ratio = theta[blocked] / np.maximum(theta[blocked] - trial[blocked], 1e-300)
            theta = theta + float(ratio.min()) * (trial - theta)
            free &= theta > 1e-15
    return theta
