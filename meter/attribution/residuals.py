"""What intervals leave of a fit: the noise of steps, a form that is wrong, and drift.

All arrays are (n,), one value an interval in order of time: ``residual``, relative to the joules
expected; ``run_share``, Σ of the squared shares that single steps have in the interval's joules;
``jitter``, doubt of the edges as a share of the interval.
"""

from __future__ import annotations

import numpy as np

from meter.attribution.curve import Array
from meter.attribution.median import median

#: The least misfit that is believed.
FLOOR = 0.002

_BUSY = 1e-3
_ALONE = 0.5
_MEDIAN_OF_CHI2 = 0.4549
_NOISE_MIN = 0.002
#: Believed within as much, until the data say more.
_NOISE_USUAL = 0.03
_NOISE_ROUNDS = 3
_OUTLIER = 3.5
#: A misfit is told from noise by so many intervals, and so many standard deviations.
_TOLD_APART = 200
_PLAIN = 3.0
#: Intervals that are looked at together for what drifts.
_DRIFT_OF = 16


def variance_of(run_share: Array, jitter: Array, noise: float, misfit: float) -> Array:
    """Relative variance of each interval's joules; without steps there is no form to be wrong."""
    form = np.where(run_share > _BUSY, misfit, FLOOR)
    return np.asarray(noise**2 * run_share + np.square(jitter) + np.square(form))


def noise_of(residual: Array, run_share: Array, jitter: Array) -> tuple[float, float]:
    """One step's relative noise, and the form's own misfit, from what intervals leave.

    Noise averages out over the steps of an interval, a wrong form does not: squared residuals are
    ``noise²·share + misfit²``, a line over the share of single steps. It begins with the median and
    is then fitted to all but outliers, each weighted by the variance that it foresees (a Gaussian's
    squares have twice the square of it); the misfit counts where it is plain. Where it drowns the
    noise, that is about what is usual.
    """
    busy = run_share > _BUSY
    if not busy.any():
        return _NOISE_MIN, FLOOR
    squares, jitter2 = np.square(residual[busy]), np.square(jitter[busy])
    own, share = squares - jitter2, run_share[busy]
    noise2 = max(median(np.maximum(own, 0.0) / share) / _MEDIAN_OF_CHI2, _NOISE_MIN**2)
    misfit2 = 0.0
    for _ in range(_NOISE_ROUNDS):
        foreseen = noise2 * share + misfit2 + jitter2
        kept = squares < _OUTLIER**2 * foreseen
        if not kept.any():
            break
        weight = kept / np.square(foreseen)
        ss, s, one = weight @ np.square(share), weight @ share, weight.sum()
        s_own, own_sum = weight @ (share * own), weight @ own
        noise2, misfit2, sure = s_own / ss, 0.0, ss / 2
        slope = ss * one - s * s
        if kept.sum() >= _TOLD_APART and slope > 0:
            offset = (ss * own_sum - s * s_own) / slope
            if offset > _PLAIN * (2 * ss / slope) ** 0.5:
                noise2, misfit2 = (one * s_own - s * own_sum) / slope, offset
                sure = slope / one / 2
        noise2 = (noise2 * sure + 1 / _NOISE_USUAL**2) / (sure + 1 / _NOISE_USUAL**4)
        noise2 = max(noise2, _NOISE_MIN**2)
    return float(noise2**0.5), float(max(FLOOR, misfit2**0.5))


def drift_of(residual: Array, run_share: Array, jitter: Array, noise: float) -> float:
    """What many intervals together leave beyond their noise, relative.

    Noise averages out, by half as fast as it would if a smeared counter's intervals did not share
    steps; static power that follows the temperature does not. (A step that lasts for many
    intervals is noise in all of them: those do not count.)
    """
    several = (run_share > _BUSY) & (run_share < _ALONE)
    residual = residual[several]
    variance = variance_of(run_share, jitter, noise, FLOOR)[several]
    count = len(residual) // _DRIFT_OF
    if count < _DRIFT_OF:
        return 0.0
    means = residual[: count * _DRIFT_OF].reshape(count, _DRIFT_OF).mean(axis=1)
    noise2 = variance[: count * _DRIFT_OF].sum() / count / _DRIFT_OF**2
    spread = 1.4826 * median(np.abs(means - median(means)))
    return float(max(0.0, spread**2 - 2.0 * noise2) ** 0.5)


def correlation(standard: Array, trust: Array) -> float:
    """How much neighbouring residuals repeat each other: ``(1 + ρ)/(1 − ρ)``, never below 1."""
    kept = np.where(trust > 0, standard, 0.0)
    power = float(kept @ kept)
    rho = float(kept[1:] @ kept[:-1]) / power if power > 0 else 0.0
    rho = min(max(rho, 0.0), 0.9)
    return (1 + rho) / (1 - rho)
