"""How sure a receipt is: one standard deviation of the split, from what the fit does not know.

Four parts, added in quadrature. The coefficients' covariance, over how the request's work differs
from the work that its joules would buy in its intervals (an error that all share is undone by the
closure). What an interval cannot tell: the noise of the steps in it, and its own edges. What was
split before the calibration had converged. And the model's own form, a floor. The instrument's gain
is no part of it: it is common to all requests of a device and stated apart.
"""

from __future__ import annotations

from meter.attribution.bill import Bill
from meter.attribution.curve import Array

_FORM = 0.0007
_UNLEARNED = 0.5


def uncertainty_j(bill: Bill, covariance: Array) -> float:
    """Standard deviation of a bill's energy (joules, k = 1).

    ``covariance``: that of the coefficients (7 × 7), summed over the engine's devices.
    """
    if bill.passes == 0:
        return 0.0
    energy_j = bill.energy_j
    excess = bill.features - bill.mean_work
    variance = (_FORM * energy_j) ** 2 + bill.noise_j2
    variance += (_UNLEARNED * energy_j * bill.unlearned / bill.passes) ** 2
    variance += max(0.0, float(excess @ covariance @ excess))
    return float(min(variance**0.5, max(energy_j, 0.0)))
