"""What an answer may be, by its panel's unit: the net that catches NaN, a minus, a wrong factor.

A token takes between a millijoule and some tens of joules, whatever the model; in mJ, kWh or
per million tokens the same figure would lie far outside. The bounds are wide on purpose: they
are there for what is absurd, and known figures are checked elsewhere.
"""

from __future__ import annotations

import math

from tests.grafana.promql import Target

# Smallest and largest figure of each unit, both included.
BOUNDS = {
    "suffix:J/tok": (1e-3, 50.0),
    "suffix:kWh": (1e-3, 15.0),
    "joule": (0.0, 1e6),
    "watt": (0.0, 1e5),
    "kwatth": (1e-6, 1e4),
    "s": (0.0, 1e4),
    "percentunit": (0.0, 1.0),
    "reqps": (0.0, 1e4),
    "count:tok/s": (0.0, 1e6),
    "cps": (0.0, 1e4),
    "hertz": (1e8, 5e9),
    "short": (0.0, 1e6),
    "sishort": (0.0, 1e4),
    "none": (0.0, 2.0),
}
# Differences, which may be negative, though nothing can fall by more than the whole.
SIGNED = {"Counter over power", "Coefficients"}
# Above 1 where the data has not told much yet, and what is being learned moves far.
UNBOUND = {"Doubt", "Drift", "Coefficients"}


def implausible(target: Target, values: list[float], brief: bool = False) -> list[float]:
    """Those of a panel's figures that cannot be; ``brief``: over so few seconds that the idle power
    of a pause may fall on a handful of tokens.
    """
    low, high = BOUNDS[target.unit]
    if brief and target.unit == "suffix:J/tok":
        high *= 100
    if target.panel == "Power as a part of the limit":
        high = 1.5  # a limit is held over some time, not at each instant
        return [value for value in values if not low <= value <= high]
    if target.panel == "Lag and smear":
        low = -0.05  # a fitted time: about zero it may fall on either side
    if target.unit == "percentunit":
        low = -1.0 if target.panel in SIGNED else low
        high = 1e9 if target.panel in UNBOUND else high
    return [value for value in values if not (low <= value <= high and math.isfinite(value))]
