"""How sure a receipt is: one standard deviation of the split, from what the fit does not know.

Four parts, added in quadrature. The coefficients' covariance, over how the request's work differs
from the average work (an error that all share is undone by the closure). What an interval cannot
tell: the noise of the steps in it, and its own edges. What was split before the calibration had
converged. And the model's own form, a floor. The instrument's gain is no part of it: it is common
to all requests of a device and stated apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from meter.attribution.accumulator import Bill
from meter.attribution.calibration import Fit
from meter.attribution.coefficients import Features

_FORM = 0.01
_UNLEARNED = 0.5
_MEMORY = 0.98


class Mix:
    """A fading mean of what a joule was spent on: the average work, in features per joule."""

    def __init__(self) -> None:
        self._joules = 0.0
        self._work = np.zeros(6)

    def add(self, work: Features, energy_j: float) -> None:
        if work.steps <= 0 or energy_j <= 0:
            return
        self._joules = _MEMORY * self._joules + energy_j
        self._work = _MEMORY * self._work + np.array(work)

    def excess_of(self, bill: Bill) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """The bill's features less those that its joules would buy on average."""
        own = np.array(
            (bill.gap_s, bill.steps, bill.prefill, bill.pairs, bill.decode, bill.context)
        )
        if self._joules <= 0:
            return own
        return np.asarray(own - bill.energy_j * self._work / self._joules)


def uncertainty_j(bill: Bill, fits: Sequence[Fit], mix: Mix) -> float:
    """Standard deviation of a bill's energy (joules, k = 1)."""
    if bill.passes == 0 or not fits:
        return 0.0
    energy_j = bill.energy_j
    features = mix.excess_of(bill)
    variance = (_FORM * energy_j) ** 2 + bill.noise * (energy_j / bill.passes) ** 2
    variance += (_UNLEARNED * energy_j * bill.unlearned / bill.passes) ** 2
    for fit in fits:
        variance += max(0.0, float(features @ fit.covariance @ features))
    return float(min(variance**0.5, max(energy_j, 0.0)))
