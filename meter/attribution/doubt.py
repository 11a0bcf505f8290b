"""How sure a receipt is: one standard deviation of the split, from what the fit does not know.

Four parts, added in quadrature. The covariance of the coefficients and of the counter's delay,
over how the request's work differs from the work that its joules would buy in its intervals (an
error that all share is undone by the closure). What intervals cannot tell: the noise of the steps
in them, and their edges. What was split before the calibration had converged. And the model's own
form: a floor, or what the fit leaves of many intervals together. The instrument's gain is no part
of it: it is common to all requests of a device and stated apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from meter.attribution.bill import Bill
from meter.attribution.curve import Array

_FORM = 0.0003
_UNLEARNED = 0.5


class Unknown(NamedTuple):
    """What the fits of an engine's devices do not know.

    ``covariance``: of the coefficients and the delay (8 × 8), summed over the devices; ``drift``:
    relative, what comes and goes more slowly than requests.
    """

    covariance: Array
    drift: float


def uncertainties_j(bills: Sequence[Bill], unknown: Unknown) -> list[float]:
    """Standard deviation of each bill's energy (joules, k = 1)."""
    if not bills:
        return []
    work = np.array([bill.work for bill in bills])
    excess = work[:, 0] - work[:, 1]
    form = max(_FORM, unknown.drift)
    unsure_j2 = np.maximum(0.0, (excess @ unknown.covariance * excess).sum(axis=1)).tolist()
    return [_sd_j(bill, form, unsure) for bill, unsure in zip(bills, unsure_j2, strict=True)]


def _sd_j(bill: Bill, form: float, unsure_j2: float) -> float:
    """``form``: the model's own, relative; ``unsure_j2``: variance by what the fits do not know."""
    if bill.passes == 0:
        return 0.0
    energy_j = bill.energy_j
    variance = unsure_j2 + (form * energy_j) ** 2 + bill.unresolved_j2
    variance += (_UNLEARNED * energy_j * bill.unlearned / bill.passes) ** 2
    return float(min(variance**0.5, max(energy_j, 0.0)))
